// Photos are added by dropping, pasting, choosing or taking them. Each is sent separately, a few at a time.

import { Card, make, provider } from "./card.js";
import { classify, explain, fetchInfo } from "./client.js";
import { Failure } from "./failure.js";

const MAX_PHOTOS = 64;
const AT_ONCE = 4; // enough for the server to batch, few enough to leave capacity for others
const MAX_SPOKEN = 20;

const element = (id) => document.getElementById(id);
const photos = []; // as shown: newest first
const waiting = [];
let asking = 0;
let maxBytes = Infinity;
let preprocessing = null;

/** Announces a text to screen readers only. */
function speak(text) {
  const spoken = element("spoken");
  spoken.append(make("p", "", text));
  if (spoken.childElementCount > MAX_SPOKEN) spoken.firstElementChild.remove();
}

function notify(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

function take(files) {
  const taken = [...files].slice(0, MAX_PHOTOS - photos.length);
  const left = files.length - taken.length;
  notify(left ? `${MAX_PHOTOS} photos fit here at a time; ${left} more did not. Remove some first.` : "");
  if (!taken.length) return;
  const added = taken.map(newPhoto);
  photos.unshift(...added);
  element("cards").prepend(...added.map(({ card }) => card.element));
  speak(taken.length === 1 ? `Looking at ${added[0].card.name}` : `Looking at ${taken.length} photos`);
  waiting.push(...added);
  next();
  element("cards").firstElementChild.scrollIntoView({ block: "nearest" });
}

function newPhoto(file) {
  const photo = { file, abort: new AbortController(), state: "waiting" };
  const actions = { onRemove: () => remove(photo), onAgain: () => again(photo), onExplain: () => toggleHeatMap(photo) };
  photo.card = new Card(file, { speak, ...actions });
  return photo;
}

function next() {
  while (asking < AT_ONCE && waiting.length) {
    asking += 1;
    answer(waiting.shift()).finally(() => {
      asking -= 1;
      next();
    });
  }
  count();
}

async function answer(photo) {
  const { card, file, abort } = photo;
  try {
    const { answer: found, elapsed } = await classify(file, {
      signal: abort.signal,
      maxBytes,
      onAsk: () => card.showBusy(),
      onWait: (seconds, attempt, tries) => {
        card.showRetry(seconds, attempt, tries);
        speak(`${card.name}: the server is busy, trying again in ${seconds} seconds`);
      },
    });
    if (abort.signal.aborted) return;
    card.showAnswer(found, elapsed);
    photo.state = "done";
    speak(`${card.name}: ${card.spoken}`);
  } catch (error) {
    if (abort.signal.aborted) return;
    const failure = error instanceof Failure ? error : new Failure("This page failed", String(error), true);
    card.showFailure(failure);
    photo.state = "failed";
    speak(`${card.name}: ${failure.title}. ${failure.detail}`);
  }
}

/** Shows or hides what spoke for a photo's class. The server is asked once. */
async function toggleHeatMap(photo) {
  const { card, file, abort } = photo;
  if (card.explained) {
    card.showHeatMap(null);
    return;
  }
  const button = card.find(".explain");
  if (button.disabled) return;
  button.disabled = true;
  notify("");
  try {
    photo.explanation ??= await explain(file, abort.signal);
    if (!abort.signal.aborted) card.showHeatMap(photo.explanation, preprocessing);
  } catch (error) {
    if (!abort.signal.aborted) notify(`${card.name}: ${error.title ?? error}. ${error.detail ?? ""}`);
  } finally {
    button.disabled = false;
  }
}

function again(photo) {
  photo.state = "waiting";
  photo.card.show("waiting", "Waiting for its turn");
  photo.card.find(".remove").focus(); // the button that was pressed disappears
  waiting.push(photo);
  next();
}

function remove(photo) {
  forget(photo);
  const at = photos.indexOf(photo);
  photos.splice(at, 1);
  photo.card.element.remove();
  const neighbor = photos[Math.min(at, photos.length - 1)];
  (neighbor?.card.find(".remove") ?? element("choose")).focus();
  speak(`Removed ${photo.card.name}`);
  count();
}

function removeAll() {
  photos.forEach(forget);
  photos.length = 0;
  element("cards").replaceChildren();
  element("choose").focus();
  speak("Removed all photos");
  notify("");
  count();
}

/** Ends what is under way for a photo: its upload, its wait or its place in the queue. */
function forget(photo) {
  photo.abort.abort();
  if (waiting.includes(photo)) waiting.splice(waiting.indexOf(photo), 1);
}

function count() {
  const number = (state) => photos.filter((photo) => photo.state === state).length;
  const failed = number("failed") ? `, ${number("failed")} failed` : "";
  element("counts").textContent = `${number("done")} of ${photos.length} answered${failed}`;
  element("summary").hidden = photos.length < 2;
  document.body.classList.toggle("some", photos.length > 0);
}

function listenToPickers() {
  for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
    element(button).addEventListener("click", () => element(input).click());
    element(input).addEventListener("change", ({ target }) => {
      take(target.files);
      target.value = ""; // so that the same photo can be chosen again
    });
  }
  element("clear").addEventListener("click", removeAll);
}

/** The whole window takes the drop: a photo that misses the frame must not replace the page. */
function listenToDrops() {
  const veil = (shown) => document.body.classList.toggle("dragging", shown);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    veil(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || veil(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    veil(false);
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
    else notify("That is not a file. Drop the photo itself, from a folder or the desktop; URLs are never fetched.");
  });
}

function listenToPastes() {
  addEventListener("paste", ({ clipboardData }) => {
    if (clipboardData.files.length) take(clipboardData.files);
    else notify("There is no picture on the clipboard. Copy the photo itself, then paste again.");
  });
}

function introduce({ model, classes, runtime, limits, heat_maps: heatMaps, ...info }) {
  maxBytes = limits?.max_bytes ?? Infinity;
  preprocessing = info.preprocessing;
  document.body.classList.toggle("explains", Boolean(heatMaps));
  const chips = [model.architecture, runtime.precision, provider(runtime.provider)];
  element("model").replaceChildren(...chips.map((text) => make("li", "", text)));
  element("model").hidden = false;
  const some = classes.slice(0, 3).join(", ");
  const more = classes.length > 3 ? ` and ${classes.length - 3} more` : "";
  element("knows").textContent = `This model tells ${classes.length} classes apart: ${some}${more}.`;
  element("class-count").textContent = classes.length;
  element("classes").replaceChildren(...classes.map((name) => Object.assign(make("li", "", name), { dir: "auto" })));
  element("known").hidden = false;
}

if (/Mac|iPhone|iPad/.test(navigator.platform)) element("modifier").textContent = "⌘";
listenToPickers();
listenToDrops();
listenToPastes();
const progress = (text) => (element("knows").textContent = text);
fetchInfo(progress).then(introduce, ({ title, detail }) => notify(`${title}. ${detail}`));
