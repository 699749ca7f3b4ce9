// ioredis against a node: connect, commands, pipelines, transactions, MONITOR. Prints `ok`, or fails.
const assert = require("node:assert/strict");
const Redis = require("ioredis");

async function main() {
  const options = { host: "127.0.0.1", port: Number(process.argv[2]), maxRetriesPerRequest: 1, retryStrategy: null };
  const redis = new Redis(options);
  redis.on("error", (error) => { throw error; });
  assert.equal(await redis.ping(), "PONG");
  await redis.flushall();

  assert.equal(await redis.set("k", "v", "EX", 100), "OK");
  assert.equal(await redis.get("k"), "v");
  assert.equal(await redis.getBuffer("k").then((value) => value.toString()), "v");
  assert.equal(await redis.get("absent"), null);
  await redis.mset({ a: "1", b: "2" });
  assert.deepEqual(await redis.mget("a", "b", "absent"), ["1", "2", null]);
  await assert.rejects(redis.incr("k"), /not an integer/);

  const replies = await redis.pipeline().incr("a").get("a").incr("k").exec();
  assert.deepEqual(replies.slice(0, 2), [[null, 2], [null, "2"]]);
  assert.match(replies[2][0].message, /not an integer/);

  assert.deepEqual(await redis.multi().incr("b").get("b").exec(), [[null, 3], [null, "3"]]);
  await redis.watch("b");
  const other = new Redis({ ...options, db: 0 });
  await other.set("b", "9");
  assert.equal(await redis.multi().incr("b").exec(), null);

  const keys = [];
  for await (const batch of redis.scanStream({ match: "?", count: 10 })) keys.push(...batch);
  assert.deepEqual([...new Set(keys)].sort(), ["a", "b", "k"]);

  const monitor = await other.monitor();
  const seen = new Promise((resolve) => monitor.on("monitor", (time, args) => resolve(args)));
  await redis.get("k");
  assert.deepEqual(await seen, ["get", "k"]);

  monitor.disconnect();
  await redis.quit();
  other.disconnect();
  console.log("ok");
}

main().catch((error) => { console.error(error); process.exit(1); });
