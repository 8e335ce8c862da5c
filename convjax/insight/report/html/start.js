// What is drawn when.

function drawAll() {
  drawCurves();
  drawSpreads();
  drawConfusion();
}

fillSpreadChoice();
drawAll();
for (const id of ["along", "logarithmic"]) byId(id).addEventListener("change", drawCurves);
byId("spread-run").addEventListener("change", () => {
  fillLeafChoice();
  drawSpreads();
});
for (const id of ["leaf", "overview-of"]) byId(id).addEventListener("change", drawSpreads);
byId("run")?.addEventListener("change", () => {
  for (const block of document.querySelectorAll(".run")) {
    block.hidden = block.dataset.run !== byId("run").value;
  }
  drawConfusion();
});
dark.addEventListener("change", drawAll);
