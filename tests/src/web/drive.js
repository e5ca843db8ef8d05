// Runs the document's JavaScript client (the file named first) unchanged. It awaits at its top level and requires a package,
// which no file of Node may do at once: it runs as the body of an async function, and the class is tried after it.
"use strict";
const fs = require("fs");
const assert = require("assert");
const AsyncFunction = (async () => {}).constructor;
const text = fs.readFileSync(process.argv[2], "utf8");

(async () => {
  const client = await new AsyncFunction("require", `${text}\nreturn client;`)(require);
  const started = await client.startProcess({ name: "worker", script: "sleep", args: ["1000"], instances: 2 });
  assert.strictEqual(started.success, true);
  const listed = await client.listProcesses();
  assert.deepStrictEqual(listed.processes.map((one) => one.name), ["worker-0", "worker-1"]);
  assert.ok((await client.getSystemMetrics()).memory.total > 0);
  assert.strictEqual((await client.stopProcess("worker")).message, "Process 'worker' stopped successfully");
  const refused = await client.stopProcess("nonexistent").catch((error) => error.response);
  assert.strictEqual(refused.status, 404);
  assert.strictEqual(refused.data.error.code, "PROCESS_NOT_FOUND");
  console.log("content");
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
