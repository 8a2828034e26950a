"""The picture of the cut and the timeline, linked: who looks at a share sees its bars stand out.

The browser alone does it, with no word to the kernel. Elements say whose they are:
``data-wb-ranks`` has the numbers of ranks, ``data-wb-layer`` the name of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from bokeh.models import ColumnDataSource, CustomJS, HoverTool
from bokeh.plotting import figure

_LINK = """
const link = (window.wbLink ??= (() => {
  const sources = new Set()
  const parts = (root) => {
    const found = [...root.querySelectorAll("[data-wb-ranks], [data-wb-layer]")]
    for (const element of root.querySelectorAll("*"))
      if (element.shadowRoot != null) found.push(...parts(element.shadowRoot))
    return found
  }
  const ranks_of = (element) =>
    (element.dataset.wbRanks ?? "").split(" ").filter((each) => each !== "").map(Number)
  const layer_of = (element) => element.closest("[data-wb-layer]")?.dataset.wbLayer ?? ""

  // Have the bars of ranks, or of a layer, stand out from the others; with neither, all are alike.
  const show_bars = (ranks, layer) => {
    for (const source of sources) {
      if (source.document == null) {
        sources.delete(source)
        continue
      }
      const {rank, layer: layers} = source.data
      const chosen = (test) => [...rank.keys()].filter(test)
      const of_ranks = (i) => ranks.includes(rank[i])
      const of_layer = (i) => layers[i] === layer
      let indices = []
      if (ranks.length > 0) {
        if (layer !== "") indices = chosen((i) => of_ranks(i) && of_layer(i))
        if (indices.length === 0) indices = chosen(of_ranks)
      } else if (layer !== "") {
        indices = chosen(of_layer)
      }
      if (indices.join() !== [...source.selected.indices].join())
        source.selected.setv({indices}, {sync: false})
    }
  }

  // Have the shares of ranks stand out, and frame the picture of a layer.
  let shown = "|"
  const show_shares = (ranks, layer) => {
    const asked = `${ranks.join()}|${layer}`
    if (asked === shown) return
    shown = asked
    for (const element of parts(document)) {
      const own = ranks_of(element)
      if (own.length > 0)
        element.style.opacity =
          ranks.length === 0 || own.some((rank) => ranks.includes(rank)) ? "" : "0.3"
      else
        element.style.outline =
          layer !== "" && layer === element.dataset.wbLayer ? "3px solid #D55E00" : ""
    }
  }

  const look_at = (event) => {
    const element = event.composedPath().find((each) =>
      each.dataset != null && ("wbRanks" in each.dataset || "wbLayer" in each.dataset))
    const ranks = element == null ? [] : ranks_of(element)
    const layer = element == null ? "" : layer_of(element)
    show_bars(ranks, layer)
    show_shares(ranks, ranks.length > 0 ? layer : "")
  }
  document.addEventListener("pointerover", look_at)
  document.addEventListener("focusin", look_at)
  return {sources, show_shares}
})())
"""

_JOIN = f"{_LINK}link.sources.add(source)\nsource.selected.setv({{indices: []}}, {{sync: false}})"
_POINT = f"""{_LINK}
// cb_data.index is of the last kind of bar alone.
const hits = [...source.selection_manager.inspectors.values()]
const bar = hits.flatMap((hit) => [...hit.indices])[0]
if (bar == null) link.show_shares([], "")
else link.show_shares([source.data.rank[bar]], source.data.layer[bar])
"""


def link(fig: figure, source: ColumnDataSource) -> None:
    """Link a figure, whose bars have columns ``rank`` and ``layer``, with all that has marks."""
    join = CustomJS(args={"source": source}, code=_JOIN)
    fig.js_on_change("inner_width", join)  # when a browser has drawn it: of a reloaded page too
    source.js_on_change("data", join)
    for tool in fig.tools:
        if isinstance(tool, HoverTool):
            tool.callback = CustomJS(args={"source": source}, code=_POINT)


def layer_of(span_name: str) -> str:
    """Return the layer that a span is named after; "" where there is none."""
    layer, colon, _ = span_name.partition(": ")
    return layer if colon else ""


def marks(ranks: Iterable[int] = (), layer: str = "", *, stop: bool = False) -> str:
    """Return the attributes of an element of these ranks, or of this layer.

    With ``stop`` the keyboard can get there.
    """
    told = " ".join(map(str, ranks))
    found = f' data-wb-ranks="{told}"' if told else ""
    found += f' data-wb-layer="{escape(layer)}"' if layer else ""
    return found + (' tabindex="0"' if stop else "")
