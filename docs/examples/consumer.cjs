// Prints the output CSV of each completed request: npm install kafkajs && node consumer.cjs
const { promisify } = require("node:util");
const { zstdCompress, zstdDecompress } = require("node:zlib"); // Node.js 22.15 or newer
const { CompressionCodecs, CompressionTypes, Kafka } = require("kafkajs");

// Batches on the topics may be compressed with Zstandard, which kafkajs leaves to its user.
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: ({ buffer }) => promisify(zstdCompress)(buffer),
  decompress: promisify(zstdDecompress),
});

const brokers = (process.env.KAFKA_BROKERS ?? "127.0.0.1:9092").split(",");
const topic = process.env.TOPIC ?? "shrinkstream.requests";
const consumer = new Kafka({ clientId: "my-program", brokers }).consumer({ groupId: "my-node-program" });

async function onEvent(event) {
  // Delivery is at least once. A redelivered event has the same id: write under it, so that a repetition overwrites.
  if (event.type === "shrinkstream.RequestCompleted.v1") console.log(event.id, event.data.requestId, event.data.outputCsvUrl);
}

async function main() {
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  // The offset is committed after an event is processed; one that throws is delivered again.
  await consumer.run({ eachMessage: ({ message }) => onEvent(JSON.parse(message.value.toString())) });
}

consumer.on(consumer.events.CRASH, ({ payload }) => { if (!payload.restart) process.exit(1); });
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => consumer.disconnect().then(() => process.exit(0)));
main().catch((error) => { console.error(error); process.exit(1); });
