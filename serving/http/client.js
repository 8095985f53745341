// Sends requests to the server, waits while it is busy, and puts failures into words.

import { Failure, unreadable } from "./failure.js";
import { bytes } from "./text.js";

const TRIES = 5;
const LONGEST_WAIT = 30; // seconds; if the server asks for more, the user decides

const TITLES = {
  bad_top_k: "The server rejected the request",
  damaged: "This image is damaged",
  deadline_exceeded: "This took too long",
  empty: "This file is empty",
  internal_error: "The server failed on this photo",
  not_an_image: "This is not an image",
  overloaded: "The server is busy",
  slow_upload: "The upload was too slow",
  stopping: "The server is shutting down",
  too_complex: "This image is too complex",
  too_many_bytes: "This file is too large",
  too_many_pixels: "This image has too many pixels",
  too_much_memory: "This image needs too much memory",
  too_slow: "This image takes too long to open",
  unauthorised: "An API key is required",
  wrong_content_type: "This is not an image",
};

const HEIC_ADVICE = "iPhones store HEIC; under Settings, Camera, Formats, “Most Compatible” makes them store JPEG.";

/** The URL of `path` next to the page, without the user name and key that the page's own URL may contain. */
function address(path) {
  const url = new URL(path, location.href);
  url.username = url.password = "";
  return url.href;
}

const CLASSIFY = address("classify?top_k=5");

/** The curl command that classifies `file`, if it lies in the working directory under this name. */
export function command(file, name) {
  return `curl --data-binary ${quote(`@${name}`)} -H 'Content-Type: ${imageType(file)}' ${quote(CLASSIFY)}`;
}

const EXPLAIN = address("classify?top_k=1&explain=1");

/** The answer to `GET /info`, or a Failure. */
export async function fetchInfo() {
  const { answer, problem } = await ask(address("info"));
  if (problem) throw failure(problem);
  return answer;
}

/**
 * The answer for the image in `file`, and the milliseconds it took with the network.
 *
 * If the server is busy, it tries again after the time that the server gives, and calls `onWait(seconds, attempt,
 * tries)`. It throws a Failure, or an AbortError once `signal` is aborted.
 */
export async function classify(file, { signal, maxBytes, onWait, onAsk }) {
  if (file.size > maxBytes) {
    const detail = `It has ${bytes(file.size)}, and this server takes at most ${bytes(maxBytes)}. Make it smaller.`;
    throw new Failure(TITLES.too_many_bytes, detail, false);
  }
  for (let attempt = 1; ; attempt += 1) {
    onAsk();
    // The server detects the type from the bytes; browsers only guess it from the name.
    const headers = { "Content-Type": "application/octet-stream" };
    const found = await ask(CLASSIFY, { method: "POST", body: file, headers, signal });
    if (found.answer) return found;
    if (attempt === TRIES) throw failure(found.problem, file);
    onWait(found.seconds, attempt + 1, TRIES);
    await sleep(found.seconds * 1000, signal);
  }
}

/** The heat map of the best class of the image in `file`: an explanation of the server's, or a Failure. */
export async function explain(file, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  const { answer, problem } = await ask(EXPLAIN, { method: "POST", body: file, headers, signal });
  if (problem) throw failure(problem, file);
  return answer.explanation;
}

/** Either {answer, elapsed} or, of a busy server that may be asked again, {problem, seconds}. */
async function ask(url, { body, signal, ...options } = {}) {
  const start = performance.now();
  let response;
  let content;
  try {
    response = await fetch(url, { body, signal, ...options });
    content = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw await noAnswer(body);
  }
  const answer = parse(content);
  if (response.ok && answer) return { answer, elapsed: performance.now() - start };
  if (!answer?.detail) throw unintelligible(response);
  const seconds = retryAfter(response);
  if (response.status === 503 && seconds <= LONGEST_WAIT) return { problem: answer, seconds };
  throw failure(answer, body);
}

function parse(content) {
  try {
    return JSON.parse(content);
  } catch {
    return null;
  }
}

/** Seconds of Retry-After, which may be a date; infinite without one. */
function retryAfter(response) {
  const text = response.headers.get("Retry-After");
  if (text === null) return Infinity;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? Infinity : Math.max(1, Math.ceil(seconds));
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function failure({ reason, title, detail, status }, file) {
  let words = sentence(detail);
  if (reason === "not_an_image" && /hei[cf]/i.test(`${file?.type} ${file?.name}`)) words += ` ${HEIC_ADVICE}`;
  return new Failure(TITLES[reason] ?? title ?? "Refused", words, status >= 500 || status === 408);
}

/** A detail from the server as a sentence, without the image's name at its start, which the card shows already. */
function sentence(detail) {
  const text = String(detail).replace(/^image: /, "");
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** fetch fails in the same way for a server that is away and for a file that is gone: look which it is. */
async function noAnswer(file) {
  try {
    await file?.slice(0, 1).arrayBuffer();
  } catch {
    return unreadable();
  }
  const advice = file ? "The photo is still here, so you can try again." : "Reload the page later.";
  return new Failure("The server does not answer", `It may be stopped, or the network is down. ${advice}`, true);
}

function unintelligible(response) {
  const status = `${response.status} ${response.statusText}`.trim();
  const detail = `Something between you and the server answered instead (status ${status}). Try again later.`;
  return new Failure("The response is not valid", detail, true);
}

/** One word of a POSIX shell. */
function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function imageType(file) {
  return /^image\/[\w.+-]+$/.test(file.type) ? file.type : "application/octet-stream";
}
