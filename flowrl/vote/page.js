"use strict";
// One question at a time. The server knows everything; this page holds what is not sent yet and nothing else.
const $ = (id) => document.getElementById(id);
const voter = new URLSearchParams(location.search).get("voter") || "me";
const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
let state = null, picked = [], busy = true, since = 0;

// getRandomValues, because randomUUID is missing on plain http from another machine
const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const source = (content) => `api/image/${content}`;

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The same request, with the same id, until the server has answered: it counts an id once.
async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  for (let wait = 500; ; wait = Math.min(wait * 2, 4000)) {
    try {
      const answer = await fetch(path, options);
      const told = await answer.json();
      if (answer.ok) return trouble(""), told;
      if (answer.status < 500) throw new Refusal(told.error);
      trouble(`${told.error} It is tried again.`);
    } catch (error) {
      if (error instanceof Refusal) throw error;
      trouble("flowrl vote does not answer. Your last answer is kept here and sent as soon as it is back.");
    }
    await pause(wait);
  }
}
class Refusal extends Error {}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

async function load() {
  try { show(await ask(`api/state?voter=${encodeURIComponent(voter)}`)); } catch (error) { trouble(error.message); }
}

async function send(path, body) {
  busy = true;
  try {
    show(await ask(path, { id: fresh(), voter, ...body }));
  } catch (error) {
    // another window answered first, or the server was started with other questions
    await load();
    trouble(error.message);
  }
}

function show(told) {
  state = told;
  picked = [];
  const { question, done, total } = told;
  document.title = `${done} of ${total} · ${told.title} · flowrl vote`;
  $("title").textContent = told.title + (voter === "me" ? "" : ` · ${voter}`);
  $("count").replaceChildren(element("b", "", done), ` of ${total}`, element("span", "", done < total ? ` · ${total - done} left` : ""));
  $("walked").style.width = `${total ? 100 * done / total : 0}%`;
  for (const [name, value] of [["min", 0], ["max", total], ["now", done]]) $("way").setAttribute(`aria-value${name}`, value);
  $("undo").disabled = !told.undo;
  $("tie").hidden = $("skip").hidden = $("ask").hidden = $("images").hidden = !question;
  $("end").hidden = Boolean(question);
  if (question) lay(question); else finish(told);
  for (const content of told.then ? told.then.images : []) new Image().src = source(content);
}

function lay({ prompt, images }) {
  const pair = images.length === 2, box = $("images");
  $("desk").dataset.mode = pair ? "pair" : "rank";
  $("what").textContent = pair ? "Which is better?" : `Choose in order, the best first (${images.length} images)`;
  $("prompt").textContent = prompt;
  box.classList.remove("ready", "settled");
  const loading = [];
  box.replaceChildren(...images.map((content, i) => {
    const button = element("button"), img = element("img");
    button.setAttribute("aria-label", pair ? `the ${["first", "second"][i]} image is better` : `image ${i + 1}`);
    img.alt = "";
    img.draggable = false;
    loading.push(new Promise((seen) => {
      img.onload = () => { if (img.naturalWidth <= 128) img.classList.add("tiny"); seen(); };
      img.onerror = () => { img.replaceWith(element("span", "lost", "this image cannot be shown")); seen(); };
    }));
    img.src = source(content);
    button.append(img, element("span", "hint", pair ? "←→"[i] : i + 1));
    button.onclick = () => choose(i);
    return button;
  }));
  // both appear at once, so the one that loads faster is not seen longer
  const key = state.question.key;
  Promise.all(loading).then(() => {
    if (!state.question || state.question.key !== key) return;
    arrange();
    box.classList.add("ready");
    since = performance.now();
    busy = false;
  });
}

// As many columns as make the images largest.
function arrange() {
  const box = $("images"), count = box.children.length, gap = 20;
  const shapes = [...box.querySelectorAll("img")].map((img) => img.naturalWidth / img.naturalHeight || 1);
  const shape = Math.max(0.2, ...shapes);
  let best = 0, columns = count;
  for (let n = count; n >= 1; n--) {
    const rows = Math.ceil(count / n);
    const width = (box.clientWidth - gap * (n - 1)) / n, height = (box.clientHeight - gap * (rows - 1)) / rows;
    const size = Math.min(width, height * shape);
    if (size > best * 1.02) [best, columns] = [size, n];
  }
  box.style.setProperty("--columns", columns);
}

const buttons = () => [...$("images").children];

function mark() {
  buttons().forEach((button, i) => {
    const place = picked.indexOf(i);
    button.classList.toggle("chosen", place >= 0);
    button.querySelector(".badge")?.remove();
    if (place >= 0 && buttons().length > 2) button.append(element("span", "badge", place + 1));
  });
  $("undo").disabled = !picked.length && !state.undo;
}

function choose(i) {
  const count = buttons().length;
  if (busy || i >= count) return;
  if (picked.includes(i)) picked.splice(picked.indexOf(i), 1); else picked.push(i);
  if (picked.length === count - 1) {
    if (count > 2) picked.push(buttons().findIndex((_, n) => !picked.includes(n)));
    const ranks = buttons().map((_, n) => (picked.includes(n) ? picked.indexOf(n) : count - 1));
    answer(ranks, count > 2 ? 420 : 170);
  }
  mark();
}

async function answer(ranks, rest) {
  if (busy || !state.question) return;
  busy = true;
  const seconds = Math.min((performance.now() - since) / 1000, 1e6);
  $("images").classList.add("settled");
  document.activeElement?.blur();
  await pause(reduced ? 0 : rest);
  send("api/vote", { question: state.question.key, ranks, seconds });
}

const tie = () => answer(buttons().map(() => 0), 60);
const skip = () => answer(null, 60);

function undo() {
  if (picked.length && !busy) { picked.pop(); mark(); return; }
  if ((busy && state?.question) || !state?.undo) return;
  send("api/undo", { of: state.undo });
}

function percent(x) { return `${Math.round(100 * x)} %`; }

function finish({ total, result, title }) {
  busy = false;
  const end = $("end"), facts = element("ul", "facts");
  end.replaceChildren(element("p", "over", "All answered"), element("h1", "", "Thank you."));
  end.append(element("p", "lead", `All ${total} questions about ${title} are answered, and your votes are saved.`));
  if (result.after) end.append(verdict(result.after));
  const tell = (value, what) => { const li = element("li"); li.append(element("b", "", value), ` ${what}`); facts.append(li); };
  tell(result.votes, result.votes === 1 ? "vote" : "votes");
  tell(result.ties, "about the same");
  tell(result.unsaid, "could not say");
  if (result.seconds !== null) tell(`${result.seconds.toFixed(1)} s`, "each");
  end.append(facts);
}

function verdict({ rate, low, high, n }) {
  const card = element("div", "card"), range = element("div", "range");
  card.append(element("small", "", "The image after training was preferred in"), element("span", "big", percent(rate)));
  card.append(element("small", "", `95 % interval ${percent(low)} to ${percent(high)}, ${n} ${n === 1 ? "caption" : "captions"}, ties as half`));
  const put = (name, style, text) => { const made = element("span", name, text); Object.assign(made.style, style); range.append(made); };
  put("axis", {});
  put("bar after", { left: percent(low).replace(" ", ""), width: percent(high - low).replace(" ", "") });
  put("dot after", { left: percent(rate).replace(" ", "") });
  put("tick first", { left: "0" }, "before");
  put("tick", { left: "50%" }, "no difference");
  put("tick last", { left: "100%" }, "after");
  card.append(range);
  return card;
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const pair = state?.question?.images.length === 2;
  const does = { " ": tie, ArrowDown: tie, u: undo, U: undo, Backspace: undo, s: skip, S: skip };
  if (pair) Object.assign(does, { ArrowLeft: () => choose(0), ArrowRight: () => choose(1) });
  else for (let i = 0; i < 9; i++) does[i + 1] = () => choose(i);
  if (!does[event.key]) return;
  event.preventDefault();
  if (event.type === "keydown" && !event.repeat) does[event.key]();
}
addEventListener("resize", arrange);
addEventListener("keydown", key);
addEventListener("keyup", key); // Firefox presses a focused button when the space bar is let go
$("undo").onclick = undo;
$("tie").onclick = tie;
$("skip").onclick = skip;
load();
