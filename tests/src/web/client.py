import requests
import websocket
import json
class PMDaemonClient:
    def __init__(self, base_url='http://localhost:9615'):
        self.base_url = base_url
    def list_processes(self):
        response = requests.get(f'{self.base_url}/api/processes')
        return response.json()
    def start_process(self, config):
        response = requests.post(f'{self.base_url}/api/processes', json=config)
        return response.json()
    def stop_process(self, name_or_id):
        response = requests.delete(f'{self.base_url}/api/processes/{name_or_id}')
        return response.json()
    def get_system_metrics(self):
        response = requests.get(f'{self.base_url}/api/system')
        return response.json()
# WebSocket client
def on_message(ws, message):
    data = json.loads(message)
    print(f"Received: {data}")
def on_error(ws, error):
    print(f"Error: {error}")
def on_close(ws, close_status_code, close_msg):
    print("Connection closed")
# Connect to WebSocket
ws = websocket.WebSocketApp("ws://localhost:9615/ws",
    on_message=on_message,
    on_error=on_error,
    on_close=on_close)
ws.run_forever()
