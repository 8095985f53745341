// Decodes photos and runs the graph, away from the page's own thread.
//
// Pixels are read at the photo's own size, upright, on white. The graph resizes them: a canvas would do it differently.
// For models that reduce large JPEGs while they decode them, so does this: libjpeg gives the means of squares.

import * as ort from "./ort.wasm.bundle.min.mjs";

const MAX_PIXELS = 50e6; // as `lipsformer predict`
const REDUCTIONS = [8, 4, 2]; // of JPEGs
const SPARE = 2; // times the final side that a reduced JPEG keeps of the crop's shorter side, at least
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
  const { pixels, width, height } = reduce(await read(file), await isJpeg(file));
  const decoded = performance.now();
  const images = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const { logits } = await session.run({ images }, ["logits"]);
  const timing = { decode: decoded - start, infer: performance.now() - decoded };
  return { logits: logits.data, timing };
}

/** RGB of a photo, row by row. */
async function read(file) {
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

/** The means of squares, if the file is a JPEG, the model was trained so, and the crop is large enough. */
function reduce({ pixels, width, height }, jpeg) {
  const { image_size: side, crop_pct: part, jpeg_scale: scale } = preprocessing;
  const crop = (Math.min(width, height) * side) / Math.round(side / part);
  const factor = REDUCTIONS.find((number) => number <= crop / (SPARE * side));
  if (!jpeg || scale !== "reduced" || !factor) return { pixels, width, height };
  const columns = spans(width, factor);
  const rows = spans(height, factor);
  const means = new Uint8Array(columns.length * rows.length * 3);
  const line = new Float32Array(width * 3);
  let at = 0;
  for (const row of rows) {
    line.fill(0);
    for (const [y, weight] of row) {
      const from = y * line.length;
      for (let count = 0; count < line.length; count += 1) line[count] += weight * pixels[from + count];
    }
    for (const column of columns) {
      const sums = [0.5, 0.5, 0.5]; // to round
      for (const [x, weight] of column) {
        for (let channel = 0; channel < 3; channel += 1) sums[channel] += weight * line[x * 3 + channel];
      }
      for (const sum of sums) means[at++] = sum;
    }
  }
  return { pixels: means, width: columns.length, height: rows.length };
}

/** `length` pixels divided evenly into spans of about `factor`: the pixels of each, with their shares of it. */
function spans(length, factor) {
  const count = Math.round(length / factor);
  const span = length / count;
  return Array.from({ length: count }, (_, number) => {
    const [start, end] = [number * span, Math.min((number + 1) * span, length)];
    const first = Math.floor(start);
    return Array.from({ length: Math.ceil(end) - first }, (__, offset) => {
      const covered = Math.min(first + offset + 1, end) - Math.max(first + offset, start);
      return [first + offset, covered / (end - start)];
    });
  });
}

async function isJpeg(file) {
  const [first, second, third] = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  return first === 0xff && second === 0xd8 && third === 0xff;
}

async function decode(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw { failure: "unreadable" };
  }
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
