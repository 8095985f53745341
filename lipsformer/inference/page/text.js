// Numbers in words.

/** 2100000 as "2.1 MB". */
export function bytes(count) {
  if (count < 1000) return `${count} bytes`;
  return count < 1e6 ? `${Math.round(count / 1e3)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

/** 0.123 as "12.3 %". */
export const percent = (score) => (score > 0 && score < 0.001 ? "< 0.1 %" : `${(score * 100).toFixed(1)} %`);

export function duration(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toFixed(1)} s`;
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}
