// node-redis against a node, in RESP2 and RESP3, with a client-side cache in RESP3. Prints `ok`, or fails.
const assert = require("node:assert/strict");
const { createClient } = require("@redis/client");

async function open(options) {
  const url = `redis://127.0.0.1:${process.argv[2]}`;
  const client = createClient({ url, socket: { reconnectStrategy: false }, ...options });
  client.on("error", (error) => { throw error; });
  await client.connect();
  return client;
}

async function commands(client) {
  await client.flushAll();
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("k", "v", { expiration: { type: "EX", value: 100 }, condition: "NX" }), "OK");
  assert.equal(await client.get("k"), "v");
  assert.equal(await client.get("absent"), null);
  await client.mSet({ a: "1", b: "2" });
  assert.deepEqual(await client.mGet(["a", "b", "absent"]), ["1", "2", null]);
  await assert.rejects(client.incr("k"), /not an integer/);
  // Sent in one packet, since nothing waits in between.
  assert.deepEqual(await Promise.all([client.incr("a"), client.incr("a"), client.get("a")]), [2, 3, "3"]);
  assert.deepEqual(await client.multi().incr("b").get("b").exec(), [3, "3"]);
  const keys = [];
  for await (const batch of client.scanIterator({ MATCH: "?" })) keys.push(...batch);
  assert.deepEqual([...new Set(keys)].sort(), ["a", "b", "k"]);
  assert.equal((await client.clientInfo()).libName, "node-redis");
}

async function cached() {
  const writer = await open({});
  const reader = await open({ RESP: 3, clientSideCache: { ttl: 0, maxEntries: 100, evictPolicy: "LRU" } });
  await writer.set("cached", "1");
  await writer.sendCommand(["CONFIG", "RESETSTAT"]);
  for (let i = 0; i < 3; i++) assert.equal(await reader.get("cached"), "1");
  assert.match(await writer.info("commandstats"), /cmdstat_get:calls=1,/, "only the first GET goes to the server");
  await writer.set("cached", "2");
  for (let tries = 0; (await reader.get("cached")) !== "2"; tries++) {
    assert.ok(tries < 100, "the cached value was never invalidated");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await writer.close();
  await reader.close();
}

async function main() {
  for (const RESP of [2, 3]) {
    const client = await open({ RESP });
    await commands(client);
    await client.close();
  }
  await cached();
  console.log("ok");
}

main().catch((error) => { console.error(error); process.exit(1); });
