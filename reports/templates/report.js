"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");

  // Colours come from the style sheet, so that page and charts change together.
  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  function bars(line) {
    const fills = { more: "simulated", less: "measured", simulated: "faint" };
    return {
      type: "bar",
      orientation: "h",
      x: line.x,
      y: line.y,
      base: line.base,
      marker: { color: line.fill.map((name) => colour(fills[name])) },
      text: line.x.map((x) => (x ? (x > 0 ? "+" : "\u2212") + Math.abs(x).toPrecision(3) : "0")),
      textposition: "outside",
      cliponaxis: false,
      hovertemplate: "%{y}: %{text} ms<extra></extra>",
    };
  }

  function trace(line, chart) {
    if (line.role === "waterfall") return bars(line);
    const hover = chart.percent_y ? "%{y:.3~%}" : "%{y:.3~g}";
    const at = chart.x === "ms" ? "%{x:.4~g} ms" : "%{x:.4~g}";
    const repeat = line.role === "repeat";
    const names = { measured: "measured", simulated: "simulated", repeat: "another run" };
    return {
      type: "scatter",
      mode: "lines",
      x: line.x,
      y: line.y,
      name: line.name || names[line.role],
      line: {
        color: colour(line.role),
        width: repeat ? 1 : 2,
        dash: { simulated: "6px,3px", series1: "6px,3px", series2: "2px,3px" }[line.role] || "solid",
      },
      opacity: repeat ? 0.7 : 1,
      hoverinfo: repeat ? "skip" : undefined,
      hovertemplate: repeat ? undefined : "%{fullData.name}: " + hover + " at " + at + "<extra></extra>",
    };
  }

  function axis(title) {
    return {
      title: { text: title, standoff: 8 },
      gridcolor: colour("rule"),
      linecolor: colour("rule"),
      zerolinecolor: colour("faint"),
      automargin: true,
      fixedrange: true,
      nticks: narrow.matches ? 5 : 7,
    };
  }

  function layout(chart) {
    const x = axis(chart.x);
    const y = axis(chart.y);
    if (chart.log_x) {
      x.type = "log";
      x.dtick = undefined;
    }
    if (chart.percent_y) y.tickformat = ".3~%";
    if (chart.key.startsWith("waterfall_")) {
      y.autorange = "reversed";
      y.nticks = undefined;
      const reach = chart.lines[0].x.flatMap((x, i) => [chart.lines[0].base[i], chart.lines[0].base[i] + x]);
      const [low, high] = [Math.min(0, ...reach), Math.max(0, ...reach)];
      const tight = narrow.matches || document.documentElement.classList.contains("paper");
      const room = (tight ? 0.6 : 0.22) * (high - low || 1); // for the numbers beside the bars
      x.range = [low < 0 ? low - room : -0.02 * room, high + room];
    }
    y.rangemode = chart.key === "by_percentile" ? "normal" : "tozero";
    return {
      margin: { l: 8, r: 12, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") },
      showlegend: chart.key === "by_percentile",
      legend: { orientation: "h", y: 1.12, x: 0 },
      hovermode: "closest",
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("faint"), font: { color: colour("ink") } },
      xaxis: x,
      yaxis: y,
    };
  }

  function draw() {
    for (const chart of charts) {
      const lines = chart.lines.map((line) => trace(line, chart));
      Plotly.react("chart-" + chart.key, lines, layout(chart), { responsive: true, displayModeBar: false });
      Plotly.Plots.resize("chart-" + chart.key);
    }
  }

  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);

  // On paper everything is shown, in the light colours.
  const closed = [];
  window.addEventListener("beforeprint", function () {
    document.documentElement.classList.add("paper");
    for (const part of document.querySelectorAll("details:not([open])")) {
      part.open = true;
      closed.push(part);
    }
    draw();
  });
  window.addEventListener("afterprint", function () {
    document.documentElement.classList.remove("paper");
    while (closed.length) closed.pop().open = false;
    draw();
  });
})();
