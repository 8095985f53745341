// One photo at a time: show it, send its bytes as they are, show the answer or the reason in words.

const element = (id) => document.getElementById(id);
const drop = element("drop");
const preview = element("preview");
const result = element("result");

const TITLES = {
  too_many_bytes: "That file is too large",
  too_many_pixels: "That image has too many pixels",
  empty: "That file is empty",
  not_an_image: "That is not an image",
  wrong_content_type: "That is not an image",
  damaged: "That image is damaged",
  overloaded: "The server is busy",
  deadline_exceeded: "That took too long",
};

let pending = null;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(state, spoken) {
  result.dataset.state = state;
  element("status").textContent = spoken; // all that a screen reader is told of it
}

function showError(title, detail) {
  element("error-title").textContent = title;
  element("error-detail").textContent = detail;
  show("error", `${title}. ${detail}`);
}

function showPreview(file) {
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = `Your photo: ${file.name}`;
  preview.hidden = false;
  element("invite").hidden = true;
  element("file-name").textContent = file.name;
  element("file-line").hidden = false;
  drop.classList.add("filled");
}

// A file the browser cannot draw (a TIFF, or no image at all) may still be one the server can read.
preview.addEventListener("error", () => {
  preview.hidden = true;
  element("invite").hidden = false;
  drop.classList.remove("filled");
});

const percent = (score) => `${(score * 100).toFixed(1)} %`;

function showAnswer(answer, elapsed) {
  element("best").textContent = answer.predictions[0].label;
  element("bars").replaceChildren(
    ...answer.predictions.map(({ label, score }) => {
      const line = make("div", "line");
      line.append(make("span", "label", label), make("span", "score", percent(score)));
      const fill = make("div", "fill");
      fill.style.setProperty("--share", `${score * 100}%`);
      const track = make("div", "track");
      track.setAttribute("aria-hidden", "true");
      track.append(fill);
      const item = make("li");
      item.append(line, track);
      return item;
    }),
  );
  const facts = {
    Server: `${answer.timing_ms.total.toFixed(0)} ms`,
    "With the network": `${elapsed.toFixed(0)} ms`,
    Runtime: answer.provider.replace("ExecutionProvider", ""),
    Model: answer.model,
  };
  element("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => {
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", value));
      return pair;
    }),
  );
  const [best] = answer.predictions;
  show("done", `${best.label}, ${percent(best.score)}`);
}

async function classify(file) {
  pending?.abort();
  const mine = (pending = new AbortController());
  showPreview(file);
  show("busy", `Looking at ${file.name}`);
  const start = performance.now();
  try {
    const response = await fetch("classify?top_k=5", {
      method: "POST",
      body: file,
      headers: { "Content-Type": "application/octet-stream" }, // what it is, the server finds out from its bytes
      signal: mine.signal,
    });
    const answer = await response.json().catch(() => ({ title: `Status ${response.status}`, detail: "Try again later." }));
    if (mine.signal.aborted) return;
    if (response.ok) showAnswer(answer, performance.now() - start);
    else showError(TITLES[answer.reason] ?? answer.title, answer.detail);
  } catch {
    if (!mine.signal.aborted) showError("No answer", "The server cannot be reached. Check that it runs, then try again.");
  }
}

function take(files) {
  if (files.length) classify(files[0]);
}

element("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same photo can be picked again
});

// The whole window takes the drop: a photo that misses the card must not replace the page.
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else showError("That is not a file", "Drop the photo itself, from a folder or the desktop; addresses are never fetched.");
});
addEventListener("paste", (event) => take(event.clipboardData.files));

async function introduce() {
  const info = await (await fetch("info")).json();
  const { model, classes, runtime } = info;
  element("model").textContent = `${model.architecture} · ${classes.length} classes · ${runtime.provider.replace("ExecutionProvider", "")}`;
  element("model").hidden = false;
  const some = classes.slice(0, 3).join(", ");
  const more = classes.length - 3;
  element("classes").textContent =
    `This model knows ${classes.length} classes: ${some}${more > 0 ? ` and ${more} more` : ""}.`;
}

element("curl").textContent = `curl -F image=@photo.jpg '${new URL("classify?top_k=5", location.href)}'`;
introduce().catch(() => {}); // the page works without; the first photo will tell what is wrong
