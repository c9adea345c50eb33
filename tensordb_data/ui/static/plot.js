// The curves of runs: a line for each run and kind, with the range of what it stands for.
const figure = document.getElementById("plot");
const form = document.getElementById("runs");
const note = document.getElementById("plot-note");
const legend = document.getElementById("plot-legend");
const dashes = [[], [8, 4], [2, 3], [12, 4, 2, 4]];
let found = null;
let chart = null;
let whole = performance.now(); // when all rows were read last
let took = 0;

function colour(name) {
  const probe = document.createElement("span");
  probe.className = name;
  figure.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function soft(value) {
  return value.replace("rgb(", "rgba(").replace(")", ", 0.2)");
}

function smoothed(values, factor) {
  // An average that forgets, and that is not drawn to nought at the beginning.
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null || !factor) return value;
    sum = sum * factor + (1 - factor) * value;
    weight = weight * factor + (1 - factor);
    return sum / weight;
  });
}

function bounds(lines, all, log) {
  const usable = (value) => value !== null && (!log || value > 0);
  const edges = lines.flatMap((line) => (all ? [...line.low, ...line.high] : line.shown)).filter(usable).sort((a, b) => a - b);
  if (!edges.length) return [log ? 0.1 : 0, 1];
  const cut = all ? 0 : Math.floor(edges.length / 100);
  const [low, high] = [edges[cut], edges[edges.length - 1 - cut]];
  if (log) return [low / 1.2, high * 1.2];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function draw() {
  const factor = Number(form.elements.smooth.value);
  const log = form.elements.log.checked;
  const lines = found.lines.map((line) => ({ ...line, shown: smoothed(line.mean, factor) }));
  const steps = [...new Set(lines.flatMap((line) => line.step))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const spread = (line, values) => {
    const column = new Array(steps.length).fill(undefined); // no point there; null is a gap
    line.step.forEach((step, index) => (column[place.get(step)] = log && values[index] !== null && values[index] <= 0 ? null : values[index]));
    return column;
  };
  const runs = [...new Set(lines.map((line) => line.run))];
  const kinds = [...new Set(lines.map((line) => line.kind))];
  const data = [steps];
  const series = [{}];
  const bands = [];
  for (const line of lines) {
    const number = runs.indexOf(line.run);
    const ink = colour(`c${number % 8}`);
    const dash = dashes[(Math.floor(number / 8) + kinds.indexOf(line.kind)) % dashes.length];
    const first = series.length;
    series.push(
      { stroke: ink, width: 1.5, dash, spanGaps: false, points: { show: line.step.length < 3 } },
      { stroke: "transparent", points: { show: false } },
      { stroke: "transparent", points: { show: false } },
    );
    data.push(spread(line, line.shown), spread(line, line.high), spread(line, line.low));
    bands.push({ series: [first + 1, first + 2], fill: soft(ink) });
  }
  const grid = { stroke: colour("probe"), width: 1 };
  const axis = { stroke: getComputedStyle(note).color, grid, ticks: grid };
  chart?.destroy();
  chart = new uPlot(
    {
      width: figure.clientWidth, height: 340, series, bands, legend: { show: false },
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: bounds(lines, form.elements.outliers.checked, log) } },
      axes: [{ ...axis, label: "step", labelSize: 22 }, { ...axis, size: 70 }],
      hooks: { setCursor: [(one) => tell(lines, runs, kinds, one.cursor.idx === null ? null : steps[one.cursor.idx])] },
    },
    data, figure,
  );
  tell(lines, runs, kinds, null);
}

function nearest(line, step) {
  let best = line.step.length - 1;
  if (step !== null) line.step.forEach((one, index) => Math.abs(one - step) < Math.abs(line.step[best] - step) && (best = index));
  return best;
}

function tell(lines, runs, kinds, step) {
  legend.replaceChildren(
    ...lines.map((line) => {
      const index = nearest(line, step);
      const item = document.createElement("li");
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      dot.setAttribute("class", `dot c${runs.indexOf(line.run) % 8}`);
      dot.setAttribute("viewBox", "0 0 10 10");
      dot.setAttribute("aria-hidden", "true");
      const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [name, value] of [["cx", 5], ["cy", 5], ["r", 5]]) circle.setAttribute(name, value);
      dot.append(circle);
      const value = line.shown[index];
      const lost = line.nonfinite ? `, ${line.nonfinite} not finite` : "";
      const text = ` ${line.run}${kinds.length > 1 ? ` ${line.kind}` : ""}: ${value === null ? "–" : Number(value.toPrecision(4))} at step ${Math.round(line.step[index])}${lost}`;
      item.append(dot, text);
      return item;
    }),
  );
}

async function load(page, more = "") {
  const answer = await fetch(figure.dataset.src.replace("./curves?", `./${page}?`) + more);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function remember() {
  const here = new URL(location.href);
  for (const name of ["smooth", "log", "outliers"]) {
    const field = form.elements[name];
    const value = field.type === "checkbox" ? (field.checked ? "1" : "") : Number(field.value) ? field.value : "";
    if (value) here.searchParams.set(name, value);
    else here.searchParams.delete(name);
  }
  history.replaceState(null, "", here);
}

for (const name of ["smooth", "log", "outliers"]) {
  form.elements[name].addEventListener("input", () => {
    remember();
    if (found) draw();
  });
}
addEventListener("resize", () => chart?.setSize({ width: figure.clientWidth, height: 340 }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => found && draw());

async function show() {
  const exact = load("curves");
  exact.catch(() => {}); // told below
  try {
    const first = await load("sampled");
    if (!found) {
      found = first;
      draw();
      note.textContent = "sampled: some steps of each run";
    }
  } catch {
    // what is wrong, the other answer says
  }
  try {
    found = await exact;
    draw();
    const rows = found.lines.reduce((sum, line) => sum + line.rows, 0);
    note.textContent = `${rows.toLocaleString("en").replaceAll(",", "\u202f")} rows; a band is from the lowest to the highest`;
    figure.dataset.drawn = "exact";
  } catch (error) {
    note.textContent = found ? `${note.textContent}; ${error.message}` : error.message;
    figure.dataset.drawn = "fault";
  }
}

function take(fresh) {
  // Each new row is a point of its own, until all is read anew.
  for (const one of fresh.lines) {
    const line = found.lines.find((known) => known.run === one.run && known.kind === one.kind);
    if (!line || one.step[0] <= line.step[line.step.length - 1]) return false; // a new line, or steps that come again
    for (const name of ["mean", "low", "high"]) line[name].push(...one.value);
    line.step.push(...one.step);
    line.rows += one.value.filter((value) => value !== null).length;
    line.nonfinite += one.value.filter((value) => value === null).length;
  }
  found.newest = fresh.newest;
  return true;
}

async function anew() {
  const began = performance.now();
  const fresh = await load("curves");
  [whole, took] = [performance.now(), performance.now() - began];
  const changed = JSON.stringify(fresh.lines) !== JSON.stringify(found.lines);
  found = fresh;
  if (changed) draw();
}

async function refresh() {
  let wait = 3000;
  if (!document.hidden && found?.newest) {
    try {
      const fresh = await load("fresh", `&after=${found.newest}`);
      const due = performance.now() - whole > Math.max(60000, 100 * took);
      if (fresh.more || due || !take(fresh)) {
        await anew();
        wait = Math.max(wait, 20 * took);
      } else if (fresh.lines.length) draw();
      figure.dataset.rows = found.lines.reduce((sum, line) => sum + line.rows, 0);
    } catch {
      // the next time, perhaps
    }
  }
  setTimeout(refresh, wait);
}

show().then(() => setTimeout(refresh, 3000));
