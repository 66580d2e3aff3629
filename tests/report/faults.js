/* The faults of a page, in words: elements that reach over the window or hide a part of their content at a side, but for
   those that scroll, show it by a shadow and take the keyboard; and texts with less contrast than WCAG 2 wants (AA). */
() => {
  const name = e => `${e.tagName.toLowerCase()}${e.id && "#" + e.id}.${e.className}`;
  const label = e => `${name(e)}: ${(e.textContent || e.value || "").trim().slice(0, 40)}`;
  const scrolls = e => {
    const style = getComputedStyle(e);
    return e.tabIndex >= 0 && style.overflowX == "auto" && style.backgroundImage.includes("gradient");
  };

  /* Colours: [red, green, blue, alpha], of 255 and 1. */
  const parse = text => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return text.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((x, i) => a * x + (1 - a) * below[i]);
  const above = e => e ? [e, ...above(e.parentElement)] : [];
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  const ground = e => above(e).reverse().reduce((below, one) => over(parse(getComputedStyle(one).backgroundColor), below), canvas);
  const opacity = e => above(e).reduce((all, one) => all * Number(getComputedStyle(one).opacity), 1);
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = color => color.reduce((sum, x, i) => sum + linear(x / 255) * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (e, color) => {
    const [r, g, b, a] = parse(color), below = ground(e);
    const [low, high] = [light(over([r, g, b, a * opacity(e)], below)), light(below)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };

  const faults = [], typed = "input:not([type=range], [type=checkbox], [type=file])";
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!e.checkVisibility({visibilityProperty: true}) || !box.width || style.clipPath != "none") continue;
    const inside = e.parentElement.closest(".scroll");
    if (box.right > innerWidth + 1 && !(inside && scrolls(inside))) faults.push(`beyond the window: ${label(e)}`);
    if (e.scrollWidth > e.clientWidth + 1 && style.overflowX != "visible" && !scrolls(e)) faults.push(`cut: ${label(e)}`);
    const colors = [...e.childNodes].some(n => n.nodeType == Node.TEXT_NODE && n.data.trim()) ? [style.color] : [];
    if (e.matches(typed) && e.value) colors.push(style.color);
    if (e.matches(typed) && !e.value && e.placeholder) colors.push(getComputedStyle(e, "::placeholder").color);
    for (const color of colors) if (contrast(e, color) < 4.5) faults.push(`${contrast(e, color).toFixed(2)} of contrast: ${label(e)}`);
  }
  return faults;
}
