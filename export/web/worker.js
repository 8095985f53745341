// Decodes photos and runs the graph, away from the page's own thread.
//
// Pixels are read at the photo's own size, upright, on white. The graph resizes them: a canvas would do it differently.
// For models that reduce large JPEGs while they decode them, so does this.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { readReduced } from "./reduced-jpeg.js";

const MAX_PIXELS = 50e6; // as `lipsformer predict`
const STRIP = 1 << 20; // pixels to read at a time: a canvas may not be as large as a photo

let session;
let preprocessing;
let turn = Promise.resolve();

addEventListener("message", ({ data }) => {
  turn = turn.then(() => answer(data)); // one after the other
});

async function answer({ number, ...message }) {
  try {
    postMessage({ number, ...(message.graph ? await open(message) : await classify(message)) });
  } catch (error) {
    const failure = ["The model failed on this photo", `${error?.message ?? error}.`, true];
    postMessage({ number, failure: error.failure ?? failure });
  }
}

async function open({ graph, wasm, ...settings }) {
  ort.env.wasm.numThreads = 1; // more need headers that few static hosts send
  ort.env.wasm.wasmBinary = wasm;
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  preprocessing = settings.preprocessing;
  return {};
}

async function classify({ file }) {
  const start = performance.now();
  const { pixels, width, height } = await readPixels(file);
  const decoded = performance.now();
  const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const { logits, features } = await session.run({ images });
  const timing = { decode: decoded - start, infer: performance.now() - decoded };
  return { logits: logits.data, features: features.data, timing };
}

/** RGB of a photo, row by row, upright. */
async function readPixels(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw { failure: "unreadable" };
  }
  return (await readReduced(file, preprocessing, MAX_PIXELS)) ?? readFull(file);
}

async function readFull(file) {
  const bitmap = await decode(file);
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    bitmap.close();
    throw failed("This image has too many pixels", `It has ${width} × ${height}, and ${MAX_PIXELS} are the limit.`);
  }
  const pixels = new Uint8Array(width * height * 3);
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP / width)));
  const context = new OffscreenCanvas(width, rows).getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "white";
  for (let top = 0, at = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, count);
    for (let from = 0; from < data.length; from += 4) {
      pixels[at++] = data[from];
      pixels[at++] = data[from + 1];
      pixels[at++] = data[from + 2];
    }
  }
  bitmap.close();
  return { pixels, width, height };
}

async function decode(file) {
  try {
    const colorSpaceConversion = preprocessing.color_management ? "default" : "none";
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion });
  } catch {
    throw failed(
      "This browser cannot open it",
      "It is no image, it is damaged, or this browser does not know its format. Save it as JPEG or PNG.",
    );
  }
}

function failed(title, detail) {
  return { failure: [title, detail, false] };
}
