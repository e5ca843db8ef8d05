# Runs the document's Python client (the file named first) unchanged: its WebSocket part in a program of its own, its class here.
# Every answer is held against the schema that /openapi.json promises for it.
import json
import subprocess
import sys
import threading
import time

import jsonschema
import requests

BASE = "http://localhost:9615"
source = open(sys.argv[1]).read()

# What the WebSocket part prints, until all four kinds of message have come.
listener = subprocess.Popen([sys.executable, "-u", sys.argv[1]], stdout=subprocess.PIPE, text=True)
wanted = {"process_update", "system_update", "health_update", "process_event"}
seen, lines, complete, begun = set(), [], threading.Event(), threading.Event()


def read():
    for line in listener.stdout:
        lines.append(line)
        begun.set()
        seen.update(kind for kind in wanted if f"'type': '{kind}'" in line)
        if seen >= wanted:
            complete.set()


threading.Thread(target=read, daemon=True).start()

document = requests.get(f"{BASE}/openapi.json").json()
checked = set()


def check(method, path, response):
    operation = document["paths"][path][method.lower()]
    promised = operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]
    schema = {**promised, "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(response.json())
    checked.add(f"{method} {path} {response.status_code}")
    return response


def ask(method, path, name="", **more):
    url = BASE + path.replace("{name_or_id}", name)
    return check(method, path, requests.request(method, url, **more))


try:
    # The class of the document, as it stands there.
    namespace = {}
    exec(compile(source.split("# WebSocket client")[0], sys.argv[1], "exec"), namespace)
    client = namespace["PMDaemonClient"]()
    assert begun.wait(20), "the WebSocket told nothing"
    config = {"name": "new-api", "script": "sh", "args": ["-c", "echo ready; echo oops >&2; exec sleep 1000"], "port": "3001"}
    started = client.start_process(config)
    assert started["success"] and started["message"] == "Process 'new-api' started successfully", started
    assert started["process"]["port"] == 3001, started
    listed = client.list_processes()
    assert listed["total"] == 1 and listed["processes"][0]["name"] == "new-api", listed
    metrics = client.get_system_metrics()
    assert metrics["cpu"]["cores"] >= 1, metrics

    one = "/api/processes/{name_or_id}"
    for path in ["/api/processes", "/api/system", "/api/status", "/health/live", "/health/ready"]:
        ask("GET", path)
    [item] = ask("GET", "/api/processes", params={"format": "pm2"}).json()
    assert item["name"] == "new-api" and item["pm2_env"]["status"] == "online" and item["pid"] > 0, item
    assert ask("GET", "/api/processes", params={"format": "pm2", "namespace": "other"}).json() == []
    assert ask("GET", "/api/processes", params={"format": "xml"}).status_code == 400
    ask("GET", "/", headers={"Accept": "application/json"})
    ask("GET", one, "new-api")
    ask("GET", one + "/health", "new-api")
    for _ in range(200):
        logs = ask("GET", "/api/logs/{name_or_id}", "new-api", params={"lines": 50}).json()
        if {line["message"] for line in logs["logs"]} >= {"ready", "oops"}:
            break
    else:
        raise AssertionError(logs)
    only = ask("GET", "/api/logs/{name_or_id}", "new-api", params={"type": "stderr"}).json()
    assert {line["type"] for line in only["logs"]} == {"stderr"}, only
    ask("GET", one + "/logs", "new-api")
    ask("POST", one + "/restart", "new-api", json={"port": "3002"})
    assert ask("GET", one, "new-api").json()["port"] == 3002
    ask("POST", one + "/restart", "new-api")
    ask("POST", one + "/reload", "new-api")
    ask("POST", one + "/stop", "new-api")
    ask("POST", one + "/start", "new-api")
    assert ask("POST", one + "/start", "new-api").status_code == 409
    assert ask("GET", one, "nonexistent").status_code == 404
    assert ask("POST", "/api/processes", json={"name": "x"}).status_code == 400
    assert ask("POST", "/api/processes", data=b"{").status_code == 415
    assert ask("POST", "/api/processes", data=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    huge = json.dumps({"name": "x" * 10_000_000})
    assert ask("POST", "/api/processes", data=huge, headers={"Content-Type": "application/json"}).status_code == 413
    assert ask("GET", "/api/system", headers={"X-API-Key": "wrong"}).status_code == 401
    assert ask("GET", "/api/system", headers={"Origin": "https://evil.example"}).status_code == 403

    json_type = {"Content-Type": "application/json"}
    def refused(body, status, word, **headers):
        answer = ask("POST", "/api/processes", data=body, headers={**json_type, **headers})
        assert answer.status_code == status and word in answer.text, (status, word, answer.text)
        assert answer.json()["success"] is False and answer.json()["error"]["code"], answer.text

    refused('{"name":"x","script":"sleep","instanses":2}', 400, "instanses")
    refused('{"name":"a/b","script":"sleep"}', 400, "name")
    refused('{"name":"x","script":"/no/such/file"}', 400, "/no/such/file")
    refused('{"name":"x","script":"sleep","env_file":"/no/such/env"}', 400, "/no/such/env")
    refused('{"name":"x","script":"sleep","interpreter":"no-such-interpreter"}', 400, "no-such-interpreter")
    refused('{"name":"x","script":"sleep","depends_on":["x"]}', 400, "depends_on")
    refused('{"name":"x","script":"sleep","port":"3002"}', 409, "3002")
    refused('{"name":"new-api","script":"sleep"}', 409, "new-api")
    refused('["name"]', 400, "")
    refused('{"name":"x","script":"sleep"}', 415, "application/json", **{"Content-Type": "text/plain"})
    assert client.list_processes()["total"] == 1, "what is refused leaves nothing"

    # The documented form of a health check.
    by_script = {"check_type": "script", "script": "true", "interval": 200}
    client.start_process({"name": "checked", "script": "sleep", "args": ["1000"], "health_check": by_script})
    assert complete.wait(20), f"only {seen} came: {lines[-20:]}"
    until = time.monotonic() + 20
    while (health := ask("GET", one + "/health", "checked").json()["health"])["total_checks"] == 0:
        assert time.monotonic() < until, health
    assert health["status"] == "healthy" and health["total_checks"] >= 1 and health["success_rate"] == 100.0, health
    ask("DELETE", one, "checked", params={"purge": "true"})

    stopped = client.stop_process("new-api")
    assert stopped == {"success": True, "message": "Process 'new-api' stopped successfully"}, stopped
    ask("DELETE", one, "new-api", params={"purge": "true"})
    assert client.list_processes() == {"processes": [], "total": 0}
finally:
    listener.kill()
print(f"content: {len(checked)} kinds of answer as promised, {', '.join(sorted(seen))}")
