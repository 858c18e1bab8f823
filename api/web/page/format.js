// Formatting of numbers, bytes and times.

const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
const count = new Intl.NumberFormat("en");
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const calendar = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", timeZone: "UTC" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export const number = (value) => count.format(value);

export function bytes(value) {
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return new Intl.NumberFormat("en", {
    style: "unit", unit: UNITS[unit], unitDisplay: unit ? "short" : "long", maximumSignificantDigits: value < 100 ? 2 : 3,
  }).format(value);
}

/** Savings in whole percent of `before`. */
export function savedPercent(before, after) {
  return before > 0 ? Math.floor(((before - after) / before) * 100) : 0;
}

export const images = (value) => `${number(value)} image${value === 1 ? "" : "s"}`;
export const rows = (value) => `${number(value)} row${value === 1 ? "" : "s"}`;
/** A day in UTC, such as 2026-11-28. */
export const dayOf = (day) => calendar.format(new Date(`${day}T00:00Z`));
export const at = (time) => moment.format(new Date(time));
export const clockTime = (time) => clock.format(new Date(time));

export function since(time) {
  const seconds = (new Date(time) - Date.now()) / 1000;
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= length) return ago.format(Math.round(seconds / length), unit);
  }
  return "just now";
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

export const shortId = (id) => id.slice(0, 8);
