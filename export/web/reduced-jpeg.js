// JPEGs at 1/2, 1/4 or 1/8 of their size, as libjpeg decodes them: the means of squares, separately of brightness and of
// the two colors, each rounded. They are means of what the file stores, so the canvas's RGB cannot serve: colors that
// lie outside of it are cut off there, pixel by pixel.

const REDUCTIONS = [8, 4, 2];
const SPARE = 2; // times the final side that the crop's shorter side keeps, at least
const SUBSAMPLING = { I420: [2, 2], I422: [2, 1], I444: [1, 1] }; // of the two colors: columns, rows
const [START, APP2, SCAN] = [0xffd8, 0xffe2, 0xffda];
const FRAMES = [0xffc0, 0xffc1, 0xffc2]; // baseline, extended, progressive
const PROFILE = "ICC_PROFILE";

/** RGB of a JPEG, reduced and upright. Null if it is to be read in full size, or the browser does not give its planes. */
export async function readReduced(file, preprocessing, maxPixels) {
  if (preprocessing.jpeg_scale !== "reduced" || !self.ImageDecoder) return null;
  const data = await file.arrayBuffer();
  const header = readHeader(data);
  const factor = header && reduction(header.shorter, preprocessing);
  if (!factor || (preprocessing.color_management && header.profile)) return null;
  const decoder = new ImageDecoder({ data, type: "image/jpeg" });
  try {
    const { image } = await decoder.decode();
    const { codedWidth: width, codedHeight: height, rotation } = image;
    const usable = image.format in SUBSAMPLING && rotation !== undefined && width * height <= maxPixels;
    const reduced = usable ? await reduce(image, factor) : null;
    image.close();
    return reduced;
  } catch {
    return null; // whoever reads it in full size will say why
  } finally {
    decoder.close();
  }
}

function reduction(shorter, { image_size: side, crop_pct: part }) {
  const crop = (shorter * side) / Math.round(side / part);
  return REDUCTIONS.find((factor) => factor <= crop / (SPARE * side));
}

async function reduce(image, factor) {
  const planes = new Uint8Array(image.allocationSize());
  const layout = await image.copyTo(planes);
  const [width, height] = [image.codedWidth, image.codedHeight].map((length) => Math.round(length / factor));
  const [luma, blue, red] = layout.map(({ offset, stride }, number) => {
    const [across, down] = number ? SUBSAMPLING[image.format] : [1, 1];
    const columns = spans(image.codedWidth / across, width);
    const rows = spans(image.codedHeight / down, height);
    return means(planes.subarray(offset), stride, columns, rows);
  });
  const upright = turned(width, height, image.rotation, image.flip);
  const pixels = new Uint8ClampedArray(width * height * 3);
  upright.order.forEach((from, to) => {
    const [y, cb, cr] = [luma[from], blue[from] - 128, red[from] - 128];
    pixels[3 * to] = y + Math.round(1.402 * cr);
    pixels[3 * to + 1] = y + Math.round(-0.344136286 * cb - 0.714136286 * cr);
    pixels[3 * to + 2] = y + Math.round(1.772 * cb);
  });
  return { pixels: new Uint8Array(pixels.buffer), width: upright.width, height: upright.height };
}

/** The rounded mean of a plane in each pair of a row's and a column's span. */
function means(plane, stride, columns, rows) {
  const found = new Uint8ClampedArray(columns.length * rows.length);
  const line = new Float32Array(stride);
  let at = 0;
  for (const row of rows) {
    line.fill(0);
    for (const [y, share] of row) {
      for (let x = 0, from = y * stride; x < stride; x += 1, from += 1) line[x] += share * plane[from];
    }
    for (const column of columns) {
      let mean = 0;
      for (const [x, share] of column) mean += share * line[x];
      found[at++] = mean;
    }
  }
  return found;
}

/** `length` samples, the last perhaps in part, divided evenly into `count` spans: the samples of each, with their shares. */
function spans(length, count) {
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

/** Where each pixel of the upright image lies in the stored one, which is to be turned clockwise, then mirrored. */
function turned(width, height, rotation, flip) {
  const upright = rotation % 180 ? { width: height, height: width } : { width, height };
  const order = new Uint32Array(width * height);
  for (let at = 0; at < order.length; at += 1) {
    const y = Math.floor(at / upright.width);
    const x = flip ? upright.width - 1 - (at % upright.width) : at % upright.width;
    const [column, row] = {
      0: [x, y],
      90: [y, height - 1 - x],
      180: [width - 1 - x, height - 1 - y],
      270: [width - 1 - y, x],
    }[rotation];
    order[at] = row * width + column;
  }
  return { ...upright, order };
}

/** What stands before a JPEG's pixels: its shorter side, and whether it has a color profile. Null for other files. */
function readHeader(data) {
  const view = new DataView(data);
  if (data.byteLength < 4 || view.getUint16(0) !== START) return null;
  const found = { shorter: 0, profile: false };
  for (let at = 2; at + 16 < data.byteLength && view.getUint16(at) !== SCAN; at += 2 + view.getUint16(at + 2)) {
    const marker = view.getUint16(at);
    if (FRAMES.includes(marker)) found.shorter = Math.min(view.getUint16(at + 5), view.getUint16(at + 7));
    const name = new TextDecoder("latin1").decode(new Uint8Array(data, at + 4, PROFILE.length));
    if (marker === APP2 && name === PROFILE) found.profile = true;
  }
  return found;
}
