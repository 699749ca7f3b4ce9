// node-redis' cluster client against the cluster ports, in RESP2 and RESP3. Prints `ok`, or fails.
const assert = require("node:assert/strict");
const { createCluster } = require("@redis/client");

async function commands(RESP, ports) {
  const cluster = createCluster({
    rootNodes: [{ url: `redis://127.0.0.1:${ports[0]}` }],
    defaults: { RESP, socket: { reconnectStrategy: false } },
    useReplicas: false,
  });
  cluster.on("error", (error) => { throw error; });
  await cluster.connect();
  assert.deepEqual(cluster.masters.map((node) => node.port).sort(), ports.sort());
  for (let i = 0; i < 100; i++) assert.equal(await cluster.set(`nr:${i}`, `v${i}`), "OK");
  const values = await Promise.all(Array.from({ length: 100 }, (_, i) => cluster.get(`nr:${i}`)));
  assert.deepEqual(values, Array.from({ length: 100 }, (_, i) => `v${i}`));
  await cluster.mSet({ "{nr}a": "1", "{nr}b": "2" });
  assert.deepEqual(await cluster.mGet(["{nr}a", "{nr}b", "{nr}absent"]), ["1", "2", null]);
  await assert.rejects(cluster.mGet(["nr:1", "nr:2"]), /CROSSSLOT/);
  await assert.rejects(cluster.incr("nr:1"), /not an integer/);
  assert.deepEqual(await cluster.multi().incr("{nr}b").get("{nr}b").exec(), [3, "3"]);
  await cluster.close();
}

async function main() {
  const ports = process.argv.slice(2).map(Number);
  for (const RESP of [2, 3]) await commands(RESP, ports);
  console.log("ok");
}

main().catch((error) => { console.error(error); process.exit(1); });
