// ioredis' Cluster against the cluster ports: finds all nodes, commands, pipelines, transactions. Prints `ok`, or fails.
const assert = require("node:assert/strict");
const { Cluster } = require("ioredis");

async function main() {
  const ports = process.argv.slice(2).map(Number);
  const cluster = new Cluster([{ host: "127.0.0.1", port: ports[0] }], {
    clusterRetryStrategy: null,
    redisOptions: { maxRetriesPerRequest: 1 },
  });
  cluster.on("error", (error) => { throw error; });
  await new Promise((resolve) => cluster.once("ready", resolve));
  assert.deepEqual(cluster.nodes("master").map((node) => node.options.port).sort(), ports.sort());

  for (let i = 0; i < 100; i++) assert.equal(await cluster.set(`io:${i}`, `v${i}`), "OK");
  for (let i = 0; i < 100; i++) assert.equal(await cluster.get(`io:${i}`), `v${i}`);
  await cluster.mset({ "{io}a": "1", "{io}b": "2" });
  assert.deepEqual(await cluster.mget("{io}a", "{io}b", "{io}absent"), ["1", "2", null]);
  await assert.rejects(cluster.mget("io:1", "io:2"), /CROSSSLOT/);
  await assert.rejects(cluster.incr("io:1"), /not an integer/);
  const replies = await cluster.pipeline().incr("{io}a").get("{io}a").incr("{io}b").exec();
  assert.deepEqual(replies, [[null, 2], [null, "2"], [null, 3]]);
  assert.deepEqual(await cluster.multi().incr("{io}b").get("{io}b").exec(), [[null, 4], [null, "4"]]);

  const readers = new Cluster([{ host: "127.0.0.1", port: ports[1] }], { scaleReads: "all", clusterRetryStrategy: null });
  await new Promise((resolve) => readers.once("ready", resolve));
  for (let i = 0; i < 100; i++) assert.equal(await readers.get(`io:${i}`), `v${i}`);

  await cluster.quit();
  await readers.quit();
  console.log("ok");
}

main().catch((error) => { console.error(error); process.exit(1); });
