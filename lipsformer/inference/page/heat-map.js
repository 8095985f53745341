// A heat map over its photo: orange spoke for the class, blue against it.

const SIDE = 480; // pixels of the drawing
const COLORS = { for: [255, 120, 0], against: [20, 110, 255] };
const MOST = 0.85; // opacity of the largest contribution

/**
 * Draws the square of a photo that the network sees, in gray, and over it the contributions (rows of numbers) in colors
 * relative to the largest one. A photo that the browser cannot draw is left blank.
 */
export function drawHeatMap(canvas, image, contributions, { image_size: size, crop_pct: share }) {
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#808080";
  context.fillRect(0, 0, SIDE, SIDE);
  const { naturalWidth: width, naturalHeight: height } = image;
  if (width && height) {
    // As Preprocessing.center_box does it.
    const side = (Math.min(width, height) * size) / Math.round(size / share);
    context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, SIDE, SIDE);
    soften(context);
  }
  context.drawImage(colored(contributions), 0, 0, SIDE, SIDE);
}

/** Turns what is drawn into a light gray, on which both colors stand out; canvas filters are not in every browser. */
function soften(context) {
  const drawn = context.getImageData(0, 0, SIDE, SIDE);
  const { data } = drawn;
  for (let at = 0; at < data.length; at += 4) {
    const luma = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
    data[at] = data[at + 1] = data[at + 2] = 32 + 0.75 * luma;
  }
  context.putImageData(drawn, 0, 0);
}

/** A small canvas with a pixel for each token; drawing it large is smooth. */
function colored(contributions) {
  const [rows, columns] = [contributions.length, contributions[0].length];
  const most = Math.max(...contributions.flat().map(Math.abs)) || 1;
  const pixels = new ImageData(columns, rows);
  contributions.flat().forEach((value, at) => {
    const color = value > 0 ? COLORS.for : COLORS.against;
    pixels.data.set([...color, Math.round((255 * MOST * Math.abs(value)) / most)], 4 * at);
  });
  const small = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}
