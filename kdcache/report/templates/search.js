"use strict";
{
  const box = document.getElementById("search");
  const input = document.getElementById("key");
  const found = document.getElementById("found");
  const images = [...document.querySelectorAll("[data-key]")];
  const search = () => {
    const wanted = input.value.trim().toLowerCase();
    let count = 0;
    for (const image of images) {
      image.hidden = !image.dataset.key.toLowerCase().includes(wanted);
      count += !image.hidden;
    }
    found.textContent = wanted ? `${count} of ${images.length} images` : "press / to search";
  };
  if (box) {
    box.hidden = false;
    input.addEventListener("input", search);
    search();
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input") && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      input.focus();
      input.select();
    } else if (event.key === "Escape" && box && event.target === input) {
      input.value = "";
      search();
      input.blur();
    }
  });
}
