// A sandbox's use of processors, memory and disk over time, read anew every five seconds.
const place = document.getElementById("charts");
const MIB = 1024 * 1024;
const CHARTS = [
  { name: "cpu", title: "Processors, % of one", scale: 1 },
  { name: "memory", title: "Memory, MiB", scale: MIB },
  { name: "disk", title: "Disk, MiB", scale: MIB },
];
const drawn = {};

function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function options({ title }, most, width) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 } };
  return {
    title, width, height: 190, legend: { show: true }, cursor: { y: false },
    // Of one reading uPlot would make an axis of years.
    scales: { x: { range: (plot, low, high) => (plot.data[0].length > 1 ? [low, high] : [low - 60, low]) }, y: { range: (_, low, high) => [0, Math.max(high * 1.15, 1)] } },
    axes: [axis, { ...axis, size: 55 }],
    series: [{}, { label: `used of ${most}`, stroke: colour("--accent"), width: 2, spanGaps: false }],
  };
}

async function read() {
  if (document.hidden) return;
  const answer = await fetch(place.dataset.from);
  if (!answer.ok) return;
  const found = await answer.json();
  if (!found.at.length) return;
  place.querySelector("p")?.remove();
  // All boxes before the first drawing, which is as wide as its box.
  for (const { name } of CHARTS.filter((one) => !drawn[one.name])) {
    const box = document.createElement("div");
    box.className = "chart";
    place.append(box);
    drawn[name] = { box, plot: null };
  }
  for (const chart of CHARTS) {
    const values = found[chart.name].map((one) => (one === null ? null : one / chart.scale));
    const data = [found.at, values], mine = drawn[chart.name];
    if (mine.plot === null) {
      mine.plot = new uPlot(options(chart, found.most[chart.name] / chart.scale, mine.box.clientWidth - 16), data, mine.box);
    } else mine.plot.setData(data);
    const newest = values.at(-1);
    mine.box.setAttribute("role", "img");
    mine.box.setAttribute("aria-label", `${chart.title}: now ${newest === null ? "unknown" : newest.toFixed(1)}`);
  }
}

addEventListener("resize", () => {
  for (const { box, plot } of Object.values(drawn)) plot?.setSize({ width: box.clientWidth - 16, height: 190 });
});
read();
setInterval(read, 5000);
