// ioredis with reads sent to replicas: it takes each node for a master, and never says READONLY. Prints `ok`, or fails.
const assert = require("node:assert/strict");
const { Cluster } = require("ioredis");

async function main() {
  const ports = process.argv.slice(2).map(Number);
  for (const scaleReads of ["slave", "all"]) {
    const cluster = new Cluster([{ host: "127.0.0.1", port: ports[1] }], { scaleReads, clusterRetryStrategy: null });
    cluster.on("error", (error) => { throw error; });
    await new Promise((resolve) => cluster.once("ready", resolve));
    for (let i = 0; i < 300; i++) assert.equal(await cluster.set(`${scaleReads}:${i}`, `v${i}`), "OK");
    for (let i = 0; i < 300; i++) assert.equal(await cluster.get(`${scaleReads}:${i}`), `v${i}`);
    const all = await Promise.all([...Array(300).keys()].map((i) => cluster.get(`${scaleReads}:${i}`)));
    assert.deepEqual(all, [...Array(300).keys()].map((i) => `v${i}`));
    await cluster.quit();
  }
  console.log("ok");
}

main().catch((error) => { console.error(error); process.exit(1); });
