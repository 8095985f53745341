// The card of one photo: its picture, its progress, and the answer or the reason why there is none.

import { command } from "./client.js";
import { drawHeatMap } from "./heat-map.js";
import { bytes, duration, percent } from "./text.js";

const STAGES = {
  network: "Network",
  read: "Receive",
  decode: "Decode",
  queue: "Wait",
  infer: "Model",
  other: "Other",
};

// What is said before and after the best class of an answer that is not accepted.
const DOUBTS = {
  low_score: ["It looks most like ", ", but the score is too low."],
  unfamiliar: ["It looks unlike the photos this model was trained on; most like ", "."],
};

/** The short name of a provider: "CPU" for "CPUExecutionProvider". */
export const provider = (name) => String(name).replace(/ExecutionProvider$/, "");

export function make(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content); // strings become text, never markup
  return made;
}

export class Card {
  /** Calls `onRemove`, `onAgain` and `onExplain` when their buttons are pressed, and `speak` with what they did. */
  constructor(file, { onRemove, onAgain, onExplain, speak }) {
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.speak = speak;
    this.name = file.name || "Photo";
    this.command = command(file, this.name);
    this.find(".card").setAttribute("aria-label", this.name);
    this.find(".name").textContent = this.name;
    this.find(".name").title = this.name;
    this.find(".size").textContent = bytes(file.size);
    this.find(".working").setAttribute("aria-label", `Classifying ${this.name}`);
    this.button(".remove", "Remove", onRemove);
    this.button(".again", "Try again with", onAgain);
    if (this.command) {
      this.find("code").textContent = this.command;
      this.button(".copy", "Copy as curl:", () => this.copy());
    } else {
      this.find("pre").remove();
      this.find(".copy").remove();
    }
    this.button(".explain", "Show what spoke for it:", onExplain);
    this.picture(file);
    this.show("waiting", "Waiting for its turn");
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  button(selector, action, onPress) {
    const button = this.find(selector);
    button.setAttribute("aria-label", `${action} ${this.name}`);
    button.addEventListener("click", onPress);
  }

  picture(file) {
    const image = this.find("img");
    const url = URL.createObjectURL(file);
    image.alt = `Your photo ${this.name}`;
    image.addEventListener("load", () => {
      URL.revokeObjectURL(url);
      this.find(".size").textContent = `${image.naturalWidth} × ${image.naturalHeight}, ${bytes(file.size)}`;
    });
    // A server may be able to read what the browser cannot draw (a TIFF, or no image at all).
    image.addEventListener("error", () => {
      URL.revokeObjectURL(url);
      image.hidden = true;
      this.find(".kind").textContent = /\.([a-z0-9]{1,5})$/i.exec(this.name)?.[1].toUpperCase() ?? "?";
      this.find(".kind").hidden = false;
    });
    image.src = url;
  }

  show(state, title, { lead = "", detail = "" } = {}) {
    this.find(".card").dataset.state = state;
    this.find(".lead").textContent = lead;
    this.find(".title").textContent = title;
    this.find(".detail").textContent = detail;
  }

  showBusy() {
    this.show("busy", "Looking …");
  }

  showRetry(seconds, attempt, tries) {
    const detail = `Trying again in ${seconds} s (attempt ${attempt} of ${tries}).`;
    this.show("busy", "The server is busy", { detail });
  }

  showFailure({ title, detail, again }) {
    this.show("failed", title, { detail });
    this.find("summary").textContent = "Details";
    this.find(".again").hidden = !again;
  }

  showAnswer(answer, elapsed) {
    const { predictions, timing_ms: timing } = answer;
    this.showVerdict(answer);
    this.showCertificate(answer);
    this.find(".bars").replaceChildren(...predictions.map(bar));
    const runs = [answer.precision, provider(answer.provider)].filter(Boolean).join(" on ");
    this.find("summary").textContent = `${duration(timing.total)}, ${runs}`;
    const stages = timeline(timing, elapsed);
    this.find(".timeline").replaceChildren(...Object.entries(stages).map(segment));
    this.find(".stages").replaceChildren(
      ...Object.entries(stages).map(([name, time]) => pair(STAGES[name] ?? name, duration(time))),
    );
    const facts = {
      "With the network": elapsed && duration(elapsed),
      "Photos in its batch": answer.batch,
      Model: answer.model,
      Request: answer.request_id,
    };
    const known = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null);
    this.find(".facts").replaceChildren(...known.map(([name, value]) => pair(name, String(value))));
  }

  /** What the certificate promises, in one sentence; nothing without one. */
  showCertificate({ certified_radius: radius }) {
    const rounded = Math.floor(radius * 1000) / 1000; // down: it is a promise
    if (!(rounded > 0)) return;
    const sentence = `No change of the pixels smaller than ${rounded} (L2, colors from 0 to 1) can change this answer.`;
    this.find(".detail").append(" ", make("span", "certified", sentence));
    this.spoken += ` ${sentence}`;
  }

  /** The best class, or why the answer is not accepted; `spoken` is the same for screen readers. */
  showVerdict({ predictions: [{ label, score }], accepted = score >= 0.5, reason }) {
    this.find(".card").dataset.accepted = !reason;
    if (reason) {
      const [before, after] = DOUBTS[reason];
      this.show("done", "Not sure");
      this.find(".detail").append(before, make("bdi", "", label), after);
      this.spoken = `Not sure. ${before}${label}${after}`;
    } else {
      this.show("done", label, { lead: accepted ? "This looks like" : "Not sure, perhaps" });
      this.spoken = `${label}, ${percent(score)}`;
    }
  }

  get explained() {
    return this.find(".explain").getAttribute("aria-pressed") === "true";
  }

  /** Shows the heat map over the photo; without one, the photo alone. */
  showHeatMap(explanation, preprocessing) {
    const canvas = this.find("canvas");
    this.find(".explain").setAttribute("aria-pressed", Boolean(explanation));
    this.find(".legend").hidden = canvas.hidden = !explanation;
    this.find(".thumb").classList.toggle("explained", Boolean(explanation));
    if (explanation) drawHeatMap(canvas, this.find("img"), explanation.map, preprocessing);
    this.speak(explanation ? `${this.name}: orange spoke for the class, blue against it` : `${this.name}: photo only`);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.command);
      this.confirm("Copied");
    } catch {
      // Without https there is no clipboard: show the command, selected.
      this.find(".more").open = true;
      getSelection().selectAllChildren(this.find("code"));
      this.confirm("Selected, press Ctrl C");
    }
  }

  confirm(text) {
    const button = this.find(".copy");
    button.textContent = text;
    this.speak(text);
    setTimeout(() => (button.textContent = "Copy as curl"), 2500);
  }
}

function bar({ label, score }) {
  const fill = make("span", "fill");
  fill.style.width = `${score * 100}%`;
  const name = make("span", "label", label);
  name.dir = "auto";
  const meter = make("div", "meter", name, make("span", "score", percent(score)), make("span", "track", fill));
  const spoken = { role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 };
  const value = { "aria-valuenow": (score * 100).toFixed(1), "aria-valuetext": percent(score) };
  for (const [key, text] of Object.entries({ ...spoken, ...value })) meter.setAttribute(key, text);
  return make("li", "", meter);
}

/** The whole time from here and back, in stages that add up to it; without `elapsed` no network is involved. */
function timeline({ total, ...stages }, elapsed) {
  const named = Object.values(stages).reduce((sum, time) => sum + time, 0);
  const network = elapsed && { network: Math.max(0, elapsed - total) };
  return { ...network, ...stages, other: Math.max(0, total - named) };
}

function segment([name, milliseconds]) {
  const part = make("span", name);
  part.style.flexGrow = milliseconds;
  return part;
}

function pair(name, value) {
  return make("div", "", make("dt", "", name), make("dd", "", value));
}
