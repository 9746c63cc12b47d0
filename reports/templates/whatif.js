"use strict";
(function () {
  const charts = JSON.parse(document.getElementById("charts-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  const names = { front: "on the front", meets: "meets the SLOs", fails: "fails the SLOs" };

  function trace(line) {
    if (line.role === "axis") {
      return {
        type: "bar", x: line.x, y: line.y, customdata: line.text, marker: { color: colour("measured") },
        hovertemplate: "%{x}: %{y:.4~g} (%{customdata})<extra></extra>",
      };
    }
    const front = line.role === "front";
    return {
      type: "scatter", mode: "markers", name: names[line.role], x: line.x, y: line.y, customdata: line.text,
      marker: {
        color: colour({ front: "simulated", meets: "measured", fails: "faint" }[line.role]),
        size: front ? 10 : 6,
        symbol: { front: "diamond", meets: "circle", fails: "circle-open" }[line.role],
      },
      hovertemplate: "%{customdata}<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
    };
  }

  function axis(title, extra) {
    return Object.assign({
      title: { text: title, standoff: 8 }, gridcolor: colour("rule"), linecolor: colour("rule"),
      zerolinecolor: colour("faint"), automargin: true,
    }, extra);
  }

  function draw() {
    for (const chart of charts) {
      const layout = {
        margin: { l: 8, r: 12, t: chart.kind === "front" ? 36 : 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") },
        showlegend: chart.kind === "front", legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 }, hovermode: "closest",
        hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("faint"), font: { color: colour("ink") } },
        xaxis: axis(chart.x, chart.kind === "axis" ? { type: "category" } : {}), yaxis: axis(chart.y, { rangemode: "tozero" }),
      };
      Plotly.react("chart-" + chart.key, chart.lines.map(trace), layout, { responsive: true, displayModeBar: false });
    }
  }

  draw();
  dark.addEventListener("change", draw);
})();
