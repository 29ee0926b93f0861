// The parts of Observable Plot that the report draws with; whatever is not named here is left out of the build.
export { plot, axisY, barX, cell, dot, gridY, line, link, pointer, ruleY, stackX, text, tickX } from "@observablehq/plot";
