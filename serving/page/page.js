// The page: takes a photo by drop, paste or choice, sends it to /classify, and shows the answer. Nothing is kept.
"use strict";

const at = (id) => document.getElementById(id);
const drop = at("drop");
let latest = 0; // answers to an older photo are not shown over a newer one

function say(text, isError = false) {
  at("message").textContent = text;
  at("message").hidden = !text;
  at("message").classList.toggle("error", isError);
}

function clearAnswer() {
  at("bars").replaceChildren();
  at("facts").textContent = "";
}

function showPreview(file) {
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.onload = () => {
    preview.hidden = false;
    at("invite").hidden = true;
    drop.classList.add("filled");
  };
  preview.onerror = () => {
    preview.hidden = true;
    at("invite").hidden = false;
    drop.classList.remove("filled");
  };
}

function showAnswer(answer, seconds) {
  for (const { label, score } of answer.predictions) {
    const row = document.createElement("li");
    const name = document.createElement("span");
    const share = document.createElement("span");
    const bar = document.createElement("progress");
    name.textContent = label;
    share.textContent = `${(100 * score).toFixed(1)} %`;
    share.className = "score";
    bar.value = score;
    bar.setAttribute("aria-hidden", "true"); // the number beside it says the same
    row.append(name, share, bar);
    at("bars").append(row);
  }
  const { decode, infer } = answer.timing_ms;
  at("facts").textContent =
    `${Math.round(seconds * 1000)} ms in all: ${decode.toFixed(1)} ms to decode, ` +
    `${infer.toFixed(1)} ms in the model (${answer.provider.replace("ExecutionProvider", "")}).`;
}

async function classify(file) {
  const mine = ++latest;
  clearAnswer();
  showPreview(file);
  say("Looking at it …");
  const form = new FormData();
  form.append("image", file);
  const started = performance.now();
  try {
    const response = await fetch("classify", { method: "POST", body: form });
    const answer = await response.json();
    if (mine !== latest) return;
    if (!response.ok) {
      say(`${answer.title}: ${answer.detail ?? "refused"}`, true);
      return;
    }
    say("");
    showAnswer(answer, (performance.now() - started) / 1000);
  } catch {
    if (mine === latest) say("The server does not answer. Try again in a moment.", true);
  }
}

function take(files) {
  if (files?.length) classify(files[0]);
}

at("file").addEventListener("change", (event) => take(event.target.files));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files);
});

at("origin").textContent = location.origin;
fetch("info")
  .then((response) => response.json())
  .then(({ classes, preprocessing }) => {
    const shown = classes.slice(0, 4).join(", ");
    at("about").textContent =
      `A LipsFormer that knows ${classes.length} classes: ${shown}${classes.length > 4 ? " …" : ""} ` +
      `It looks at ${preprocessing.image_size} × ${preprocessing.image_size} pixels.`;
  })
  .catch(() => {});
