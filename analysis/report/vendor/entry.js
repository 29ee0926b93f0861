// The parts of Observable Plot that the report draws with; whatever is not named here is left out of the build.
export { plot, areaY, axisX, axisY, barX, cell, dot, frame, gridX, gridY, line, link, pointer, rect, ruleX, ruleY, text, tickX } from "@observablehq/plot";
