// REST API client
const axios = require('axios');
class PMDaemonClient {
constructor(baseURL = 'http://localhost:9615') {
this.api = axios.create({ baseURL });
}
async listProcesses() {
const response = await this.api.get('/api/processes');
return response.data;
}
async startProcess(config) {
const response = await this.api.post('/api/processes', config);
return response.data;
}
async stopProcess(nameOrId) {
const response = await this.api.delete(`/api/processes/${nameOrId}`);
return response.data;
}
async getSystemMetrics() {
const response = await this.api.get('/api/system');
return response.data;
}
}
// Usage
const client = new PMDaemonClient();
const processes = await client.listProcesses();
console.log(processes);
