// From a RunRequest to a RunResponse: places, times, and what the module threw. No gRPC in here.
"use strict";

const os = require("node:os");
const { Exit, ...module_ } = require("./words.js");

exports.module = module_;
exports.server = `${os.hostname()}-${process.pid}`;

const QUEUE_MAX = 1000; // callers that use Run know no credit
const queue = []; // those that wait for one of `capacity` places
let running = 0;
let runTimeNs = 0; // the moving average
let draining = false;

// From now on what comes is given back: the caller gives it to another server.
exports.drain = () => {
  draining = true;
};

exports.load = () => ({ running, waiting: queue.length, runTimeNs: Math.round(runTimeNs) });

async function place() {
  if (running < module_.capacity) running += 1;
  else await new Promise((resolve) => queue.push(resolve));
}

function leave() {
  const next = queue.shift();
  if (next) next(); // it takes over the place
  else running -= 1;
}

// What was thrown, so that it can be read on another machine.
function told(thrown) {
  const { name, message, stack } = thrown instanceof Error ? thrown : new Error(String(thrown));
  const where = { host: os.hostname(), worker: exports.server };
  return { type: name, message, traceback: stack, ...where };
}

// One package: always an answer, never a throw.
exports.answer = async function answer(request, controller) {
  const got = process.hrtime.bigint();
  const response = { call: request.call, package: request.package?.id };
  if (draining || queue.length >= QUEUE_MAX) {
    return { ...response, status: "STATUS_WAITING", message: draining ? "it ends" : "it is full" };
  }
  const timeoutMs = Number(request.timeoutNs) / 1e6;
  const late = () => controller.abort(new DOMException("out of time", "TimeoutError"));
  const timer = timeoutMs && setTimeout(late, timeoutMs);
  await place();
  const began = process.hrtime.bigint();
  try {
    controller.signal.throwIfAborted();
    const { message, ...payload } = await module_.run(request.package, controller.signal);
    Object.assign(response, { status: "STATUS_SUCCESS", payload, message });
  } catch (error) {
    if (error instanceof Exit) {
      Object.assign(response, { status: "STATUS_EXIT", message: error.message });
    } else {
      Object.assign(response, { status: "STATUS_ERROR", errors: [told(error)] });
    }
  } finally {
    leave();
    clearTimeout(timer);
  }
  const now = process.hrtime.bigint();
  runTimeNs += (Number(now - began) - runTimeNs) * (runTimeNs ? 0.1 : 1);
  return { ...response, totalTimeNs: String(now - got) };
};
