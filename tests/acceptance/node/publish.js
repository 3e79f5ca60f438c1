// Publishes what standard input says, a JSON line each: exchange, routingKey, body (text), options.
// Ends when the broker has confirmed all of it. Usage: node publish.js AMQP_URL < messages
"use strict";

const amqp = require("amqplib");
const readline = require("readline");

async function main(url) {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { exchange, routingKey, body, options } = JSON.parse(line);
    channel.publish(exchange, routingKey, Buffer.from(body), options);
  }
  await channel.waitForConfirms();
  await connection.close();
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
