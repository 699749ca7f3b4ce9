// ioredis in subscriber mode: listeners at one port, publishers at others (arguments: client ports, then the ports of
// Redis Cluster clients, if there are any). Prints `ok`, or fails.
const assert = require("node:assert/strict");
const { once } = require("node:events");
const Redis = require("ioredis");

const [clientPorts, clusterPorts] = process.argv.slice(2).map((ports) => ports.split(",").map(Number));

function connect(port) {
  const redis = new Redis({ host: "127.0.0.1", port, maxRetriesPerRequest: 1, retryStrategy: null });
  redis.on("error", (error) => { throw error; });
  return redis;
}

async function several(redis, event, count) {
  const heard = [];
  for await (const args of require("node:events").on(redis, event)) {
    heard.push(args.map(String));
    if (heard.length === count) return heard;
  }
}

async function main() {
  const listener = connect(clientPorts[0]);
  const speakers = clientPorts.map(connect);
  assert.equal(await listener.subscribe("js:a", "js:b"), 2);
  assert.equal(await listener.psubscribe("js:p*"), 3);
  await assert.rejects(async () => listener.get("k"), /subscriber mode/);

  const messages = several(listener, "message", speakers.length * 50);
  for (const [index, speaker] of speakers.entries()) {
    for (let number = 0; number < 50; number++) {
      assert.equal(await speaker.publish(number % 2 ? "js:a" : "js:b", `${index}:${number}`), 1);
    }
  }
  const heard = await messages;
  for (const index of speakers.keys()) {
    const own = heard.filter(([, text]) => text.startsWith(`${index}:`));
    assert.deepEqual(own.map(([, text]) => Number(text.split(":")[1])), [...Array(50).keys()]);
  }

  const matched = once(listener, "pmessage");
  await speakers.at(-1).publish("js:pattern", "x");
  assert.deepEqual(await matched, ["js:p*", "js:pattern", "x"]);

  assert.equal(await listener.unsubscribe("js:a"), 2);
  assert.equal(await listener.unsubscribe("js:b"), 1);
  assert.equal(await listener.punsubscribe(), 0);
  assert.equal(await listener.set("js:k", "v"), "OK"); // It is a usual client again.

  await listener.ssubscribe("js:shard");
  const shard = once(listener, "smessage");
  await speakers.at(-1).spublish("js:shard", "y");
  assert.deepEqual(await shard, ["js:shard", "y"]);

  if (clusterPorts) {
    const nodes = clusterPorts.map((port) => ({ host: "127.0.0.1", port }));
    const cluster = new Redis.Cluster(nodes);
    cluster.on("error", (error) => { throw error; });
    await cluster.subscribe("js:cluster");
    const got = once(cluster, "message");
    await speakers[0].publish("js:cluster", "z");
    assert.deepEqual(await got, ["js:cluster", "z"]);
    cluster.disconnect();
  }
  for (const redis of [listener, ...speakers]) redis.disconnect();
  console.log("ok");
}

main().catch((error) => { console.error(error); process.exit(1); });
