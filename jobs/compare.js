"use strict";
const clips = [...document.querySelectorAll(".clip")];
const listener = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
let current = -1;
let last = "second";
let saved = true;

const player = (clip, side) => clip.querySelector(`[data-side="${side}"] audio`);
const heard = (clip) => clip.querySelectorAll(".side[data-heard]").length === 2;

function silence(except) {
  document.querySelectorAll("audio").forEach((audio) => { if (audio !== except) audio.pause(); });
}

function mark(index) {
  if (current === index) return;
  if (current >= 0) clips[current].classList.remove("current");
  current = index;
  last = "second";
  clips[current].classList.add("current");
}

function show(index) {
  mark(Math.max(0, Math.min(clips.length - 1, index)));
  silence(null);
  clips[current].focus({ preventScroll: true });
  clips[current].scrollIntoView({ block: "nearest" });
}

function play(side) {
  const audio = player(clips[current], side);
  const again = last === side && !audio.paused;
  last = side;
  if (again) audio.pause();
  else {
    audio.currentTime = 0;
    // One that is stopped before it began is no error.
    audio.play().catch((error) => { if (error.name !== "AbortError") throw error; });
  }
}

function tell(more) {
  const decided = clips.filter((clip) => clip.dataset.choice).length;
  document.getElementById("state").textContent = `${decided} of ${clips.length} decided${more}`;
}

function choose(clip, choice) {
  if (choice && !heard(clip)) {
    tell(", listen to both first");
    return false;
  }
  clip.dataset.choice = choice;
  clip.querySelectorAll("[data-vote]").forEach((button) => {
    button.setAttribute("aria-pressed", button.dataset.vote === choice);
  });
  saved = false;
  tell("");
  return true;
}

function vote(choice) {
  if (!choose(clips[current], choice)) return;
  const next = clips.findIndex((clip, index) => index > current && !clip.dataset.choice);
  show(next < 0 ? current : next);
}

function save() {
  const votes = clips
    .filter((clip) => clip.dataset.choice)
    .map((clip) => ({ sentence: clip.dataset.sentence, choice: clip.dataset.choice }));
  const record = { schema_version: 1, comparison: document.body.dataset.comparison, listener, votes };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1)], { type: "application/json" }));
  link.download = `votes-${record.comparison}-${listener}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  tell(", saved");
}

const keys = {
  1: () => play("first"),
  2: () => play("second"),
  " ": () => play(last === "first" ? "second" : "first"),
  ArrowLeft: () => vote("first"),
  ArrowRight: () => vote("second"),
  0: () => vote("same"),
  j: () => show(current + 1),
  ArrowDown: () => show(current + 1),
  k: () => show(current - 1),
  ArrowUp: () => show(current - 1),
  u: () => choose(clips[current], ""),
  s: save,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  // A button that has the focus is pressed by the space bar; a player plays by it and seeks by the arrows.
  if (event.target.matches("button") && event.key === " ") return;
  if (event.target.matches("audio") && event.key.startsWith("Arrow")) return;
  if (event.target.matches("audio") && event.key === " ") return;
  keys[event.key]();
  event.preventDefault();
});

clips.forEach((clip, index) => {
  clip.addEventListener("focusin", () => mark(index));
  clip.addEventListener("pointerdown", () => mark(index));
  clip.querySelectorAll(".side").forEach((side) => {
    side.querySelector("audio").addEventListener("play", (event) => {
      silence(event.target);
      last = side.dataset.side;
      side.dataset.heard = "";
      if (heard(clip)) clip.querySelectorAll("[data-vote]").forEach((button) => { button.disabled = false; });
    });
  });
  clip.querySelectorAll("[data-vote]").forEach((button) => {
    button.addEventListener("click", () => { mark(index); vote(button.dataset.vote); });
  });
});
document.getElementById("save").addEventListener("click", save);
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
show(0);
