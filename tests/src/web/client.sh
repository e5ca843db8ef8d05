# List all processes
curl http://localhost:9615/api/processes
# Start a new process
curl -X POST http://localhost:9615/api/processes \
-H "Content-Type: application/json" \
-d '{
"name": "test-api",
"script": "node",
"args": ["server.js"],
"port": "3000"
}'
# Get system metrics
curl http://localhost:9615/api/system
# Get process logs
curl "http://localhost:9615/api/logs/test-api?lines=100"
# Stop a process
curl -X DELETE http://localhost:9615/api/processes/test-api
