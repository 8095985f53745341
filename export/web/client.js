// Answers photos in this browser: checks every file of this page, then runs the graph in a worker.

import { readRule } from "./acceptance.js";
import { Failure, unreadable } from "./failure.js";
import { bytes } from "./text.js";

const TOP_K = 5;
const MANIFEST = "manifest.json";
const DAMAGED = "This page is damaged";

const waiting = new Map(); // by number: what becomes of the photos that the worker has
let worker;
let started;
let refusal; // of an answer, by the model's rule; undefined if it has none
let asked = 0;

/** There is no request that a command line could repeat. */
export const command = () => null;

/** Only servers have heat maps: nothing on this page asks for one. */
export const explain = () => null;

/** What the page says about its model, once it is loaded and checked, or a Failure. */
export function fetchInfo(onProgress) {
  started = start(onProgress);
  started.catch(() => {}); // `classify` reports it too
  return started;
}

/** The answer for the image in `file`. It throws a Failure, or nothing of interest once `signal` is aborted. */
export async function classify(file, { signal, onAsk }) {
  const info = await started;
  signal.throwIfAborted();
  onAsk();
  const start = performance.now();
  const { failure, logits, features, timing } = await send({ file });
  if (failure === "unreadable") throw unreadable();
  if (failure) throw new Failure(...failure);
  const total = performance.now() - start;
  const queue = Math.max(0, total - timing.decode - timing.infer);
  const predictions = best(logits, info.classes);
  const reason = refusal?.(predictions[0].score, features);
  return {
    answer: {
      predictions,
      ...(refusal && { accepted: !reason, reason }),
      model: info.model.architecture,
      precision: info.runtime.precision,
      provider: info.runtime.provider,
      timing_ms: { decode: timing.decode, queue, infer: timing.infer, total },
    },
  };
}

async function start(onProgress) {
  const manifest = JSON.parse(new TextDecoder().decode(await load(MANIFEST)));
  if (!crypto.subtle) {
    throw new Failure("This address is not secure", "Browsers check files only at https addresses and localhost.", false);
  }
  let done = 0;
  const contents = {};
  for (const [name, { sha256 }] of Object.entries(manifest.files)) {
    contents[name] = await load(name, (count) => {
      done += count;
      onProgress(`Loading the model: ${bytes(done)} of ${bytes(manifest.bytes)}`);
    });
    if ((await digest(contents[name])) !== sha256) {
      throw new Failure(DAMAGED, `${name} is not the file that was exported. Reload the page, or export it again.`, true);
    }
  }
  if (manifest.acceptance) refusal = readRule(contents[manifest.acceptance]);
  onProgress("Starting the model …");
  open();
  const { failure } = await send({
    graph: contents[manifest.graph],
    wasm: contents[manifest.wasm],
    preprocessing: manifest.preprocessing,
  });
  if (failure) throw new Failure(...failure);
  return {
    model: manifest.model,
    classes: manifest.classes,
    runtime: { precision: manifest.precision, provider: "WebAssembly" },
  };
}

/** The bytes of a file next to the page; `onBytes` hears of each piece. */
async function load(name, onBytes = () => {}) {
  const pieces = [];
  try {
    const response = await fetch(name, { cache: "no-cache" });
    if (!response.ok) throw new Error(`status ${response.status}`);
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      onBytes(value.length);
      pieces.push(value);
    }
  } catch (error) {
    throw new Failure("This page cannot be loaded", `${name} does not arrive (${error.message}). Try again later.`, true);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

async function digest(content) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A worker from a blob obeys this page's content security policy; one from an address would have its own. */
function open() {
  const source = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  worker = new Worker(url, { type: "module" });
  worker.addEventListener("message", ({ data: { number, ...answer } }) => {
    URL.revokeObjectURL(url);
    waiting.get(number)(answer);
    waiting.delete(number);
  });
  worker.addEventListener("error", ({ message }) => {
    const failure = ["The model stopped", `${message ?? "Its worker cannot be started"}. Reload the page.`, false];
    waiting.forEach((settle) => settle({ failure }));
    waiting.clear();
  });
}

function send(message) {
  asked += 1;
  const number = asked;
  return new Promise((resolve) => {
    waiting.set(number, resolve);
    worker.postMessage({ number, ...message });
  });
}

/** The most likely classes by softmax. */
function best(logits, classes) {
  const highest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials
    .map((value, index) => ({ label: classes[index], index, score: value / sum }))
    .sort((a, b) => b.score - a.score)
    .slice(0, TOP_K);
}
