// A module server: answers broker_pipeline.v1.ModuleService for one module. See README.md.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const { HealthImplementation } = require("grpc-health-check");
const { answer, load, module: module_, server: name, drain: giveBack } = require("./runner.js");

const ADDRESS = process.env.ADDRESS || "127.0.0.1:50061";
const PROTO = process.env.PROTO || path.join(__dirname, "../../proto");
const MESSAGE_BYTES_MAX = 64 << 20; // of a package with its journey
const HEARTBEAT_MS = 1000; // a caller takes a server that is silent for several times that for hung
const DRAIN_MS = 30_000; // after SIGTERM, what runs has so long
const LINGER_MS = 500; // requests may be on their way when a caller hears of the drain

const { ModuleService } = grpc.loadPackageDefinition(
  loader.loadSync("broker_pipeline/v1/module_service.proto", {
    includeDirs: [PROTO], longs: String, enums: String, defaults: true,
  }),
).broker_pipeline.v1;

const description = {
  name: module_.name,
  version: module_.version,
  server: name,
  contentTypes: module_.contentTypes,
  capacity: module_.capacity,
  messageBytesMax: MESSAGE_BYTES_MAX,
  heartbeatNs: HEARTBEAT_MS * 1e6,
};
const streams = new Set(); // how to drain each
let draining = false;

async function run(call, callback) {
  const controller = new AbortController();
  call.on("cancelled", () => controller.abort());
  callback(null, { ...(await answer(call.request, controller)), load: load() });
}

function stream(call) {
  const outstanding = new Map(); // call -> what cancels it; the caller's credit bounds it
  let answers = []; // those that come together leave together
  let closing = false;
  let over = false;
  const write = (message) => over || call.write({ ...message, load: load() });
  const heartbeat = setInterval(() => call.writableNeedDrain || write({}), HEARTBEAT_MS);
  const finish = () => {
    if (!closing || outstanding.size || answers.length) return;
    end();
    call.end();
  };
  const end = () => {
    over = true;
    clearInterval(heartbeat);
    streams.delete(drain);
  };
  const flush = () => {
    write({ responses: answers });
    answers = [];
    finish();
  };
  const take = async (request) => {
    const controller = new AbortController();
    outstanding.set(request.call, controller);
    const response = await answer(request, controller);
    outstanding.delete(request.call);
    if (answers.push(response) === 1) setImmediate(flush);
  };
  const close = () => {
    closing = true;
    finish();
  };
  const drain = () => {
    write({ credit: 0 });
    setTimeout(close, LINGER_MS); // the caller may close before
  };
  call.on("data", ({ requests, cancelled }) => {
    requests.forEach(take);
    cancelled.forEach((number) => outstanding.get(number)?.abort());
  });
  call.on("end", close);
  call.on("cancelled", () => {
    end();
    outstanding.forEach((controller) => controller.abort());
  });
  streams.add(drain);
  // Twice as many as run: the next ones are here when those are done.
  write({ credit: module_.capacity * 2, description });
  if (draining) drain();
}

const server = new grpc.Server({ "grpc.max_receive_message_length": MESSAGE_BYTES_MAX });
const describe = (call, callback) => callback(null, { description });
server.addService(ModuleService.service, { describe, run, stream });
const health = new HealthImplementation({ "": "SERVING" });
health.addToServer(server);

process.once("SIGTERM", () => {
  draining = true;
  health.setStatus("", "NOT_SERVING");
  giveBack();
  streams.forEach((drain) => drain());
  setTimeout(() => process.exit(1), DRAIN_MS);
  // The door stays open until the rest is done, so that whoever asks for its health is told.
  const leave = setInterval(() => {
    if (load().running || streams.size) return;
    clearInterval(leave);
    server.tryShutdown(() => process.exit(0));
    setTimeout(() => process.exit(0), LINGER_MS); // calls of the health service have no end
  }, LINGER_MS);
});

server.bindAsync(ADDRESS, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`${description.name} at ${ADDRESS.replace(/:\d+$/, "")}:${port}`);
});
