// When an answer is accepted: the rule of `lipsformer calibrate --max-error`, read from its safetensors file.

const METADATA = "lipsformer.acceptance";

/** A function of the best score and the features (C): why the answer is not accepted, or null. */
export function readRule(content) {
  const start = 8 + Number(new DataView(content.buffer, content.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(content.subarray(8, start)));
  const { min_score: least, max_distance: most } = JSON.parse(header.__metadata__[METADATA]);
  const [means, whitening] = [header.means, header.whitening].map(({ data_offsets: [from, to] }) => {
    return new Float32Array(content.slice(start + from, start + to).buffer);
  });
  return (score, features) => {
    if (!(distance(features, means, whitening) <= most)) return "unfamiliar"; // NaN too
    return score >= least ? null : "low_score";
  };
}

/** Of whitened features (C) from the nearest of the class means (K, C), divided by the root of C. */
function distance(features, means, whitening) {
  const channels = features.length;
  const whitened = new Float64Array(channels);
  features.forEach((value, row) => {
    for (let column = 0; column < channels; column += 1) whitened[column] += value * whitening[row * channels + column];
  });
  let nearest = Infinity;
  for (let from = 0; from < means.length; from += channels) {
    const square = whitened.reduce((sum, value, channel) => sum + (value - means[from + channel]) ** 2, 0);
    nearest = Math.min(nearest, square);
  }
  return Math.sqrt(nearest / channels);
}
