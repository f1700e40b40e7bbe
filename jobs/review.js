"use strict";
const clips = [...document.querySelectorAll(".clip")];
const columns = document.body.dataset.columns.split(" ");
let current = -1;
let saved = true;

const part = (clip, selector) => clip.querySelector(selector);

function mark(index) {
  if (current === index) return;
  if (current >= 0) {
    clips[current].classList.remove("current");
    part(clips[current], "audio").pause();
  }
  current = index;
  clips[current].classList.add("current");
}

function show(index) {
  if (!clips.length) return;
  mark(Math.max(0, Math.min(clips.length - 1, index)));
  clips[current].focus({ preventScroll: true });
  clips[current].scrollIntoView({ block: "nearest" });
}

function decide(clip, verdict) {
  clip.dataset.verdict = verdict;
  part(clip, ".accept").setAttribute("aria-pressed", verdict === "keep");
  part(clip, ".reject").setAttribute("aria-pressed", verdict === "reject");
  saved = false;
  count("");
}

function undo(clip) {
  part(clip, "textarea").value = clip.dataset.text_before;
  part(clip, "select").value = clip.dataset.language_before;
  decide(clip, "");
}

function count(more) {
  const decided = clips.filter((clip) => clip.dataset.verdict).length;
  document.getElementById("state").textContent = `${decided} of ${clips.length} decided${more}`;
}

// Spreadsheets take a cell that begins so for a formula.
const cell = (value) => {
  const text = value.split(/\s+/).filter(Boolean).join(" ");
  const shown = /^'*[=+\-@]/.test(text) ? `'${text}` : text;
  return /["\t]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
};

function table() {
  const lines = clips.map((clip) => {
    const line = { ...clip.dataset, text: part(clip, "textarea").value, language: part(clip, "select").value };
    return columns.map((column) => cell(line[column] ?? "")).join("\t");
  });
  return [columns.join("\t"), ...lines, ""].join("\n") + document.getElementById("earlier").value;
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/tab-separated-values" }));
  link.download = document.body.dataset.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  count(", saved");
}

function play(clip) {
  const player = part(clip, "audio");
  if (player.paused) player.play();
  else player.pause();
}

const keys = {
  " ": () => play(clips[current]),
  j: () => show(current + 1),
  ArrowDown: () => show(current + 1),
  k: () => show(current - 1),
  ArrowUp: () => show(current - 1),
  e: () => part(clips[current], "textarea").focus(),
  a: () => { decide(clips[current], "keep"); show(current + 1); },
  x: () => { decide(clips[current], "reject"); show(current + 1); },
  u: () => undo(clips[current]),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const place = event.target;
  if (place.matches("textarea, select")) {
    if (event.key === "Escape") show(current);
    return;
  }
  if (event.key === "s") save();
  else if (!clips.length || !(event.key in keys)) return;
  // A button that has the focus is pressed by the space bar, and a player plays by it.
  else if (event.key === " " && place.matches("button, audio")) return;
  else keys[event.key]();
  event.preventDefault();
});

clips.forEach((clip, index) => {
  clip.addEventListener("focusin", () => mark(index));
  clip.addEventListener("pointerdown", () => mark(index));
  part(clip, "textarea").addEventListener("input", () => decide(clip, "keep"));
  part(clip, "select").addEventListener("input", () => decide(clip, "keep"));
  part(clip, ".accept").addEventListener("click", () => decide(clip, "keep"));
  part(clip, ".reject").addEventListener("click", () => decide(clip, "reject"));
});
document.getElementById("save").addEventListener("click", save);
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
show(0);
