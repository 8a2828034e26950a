"""The panel's style sheet. Colours are JupyterLab's own, so light and dark themes both fit."""

from __future__ import annotations

from workbench.ui import table

STYLE = (
    """
.wb-panel { container-type: inline-size; padding: 4px 8px 12px; overflow: visible;
  color: var(--jp-ui-font-color1, #222); font-size: 14px; line-height: 1.45;
  --bk-axis-label-text-color: var(--jp-ui-font-color1, #767676);
  --bk-major-label-text-color: var(--jp-ui-font-color1, #767676);
  --bk-label-text-color: var(--jp-ui-font-color1, #767676);
  --bk-text-color: var(--jp-ui-font-color1, #767676);
  --jp-widgets-font-size: 14px; }
.wb-panel .widget-html, .wb-panel .widget-html-content { height: auto; line-height: 1.45;
  font-size: 14px; margin: 0; overflow: visible; min-width: 0; color: inherit; }
.wb-panel .widget-vbox, .wb-panel .widget-box { overflow: visible; }
.wb-head { flex-flow: row wrap; align-items: baseline; justify-content: space-between;
  column-gap: 24px; }
.wb-title { font-size: 20px; font-weight: 600; margin: 4px 0; }
.wb-panel h3 { font-size: 16px; font-weight: 600; margin: 12px 0 4px; }
.wb-fields { display: grid; gap: 4px 16px; align-items: start;
  grid-template-columns: minmax(0, 5fr) repeat(4, minmax(0, 1.4fr)); }
.wb-cut { grid-template-columns: repeat(2, minmax(0, 1.4fr)) minmax(0, 7.8fr); }
.wb-axes { display: grid; gap: 4px 12px; grid-template-columns: repeat(6, minmax(0, 1fr)); }
.wb-label { font-weight: 600; } .wb-label i { font-weight: 400; opacity: 0.8; }
.wb-options { display: grid; gap: 4px 16px; padding: 2px 0 8px;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.wb-compare { flex-flow: row wrap; align-items: center; gap: 4px 8px; }
.wb-compare .jupyter-button { width: auto; height: 28px; margin: 0; }
.wb-compare .widget-hbox, .wb-limits .wb-chips { flex-flow: row wrap; align-items: center;
  gap: 4px; height: auto; }
.wb-chip { font-weight: 600; border: 1px solid currentColor; border-radius: 14px; }
.wb-controls ul { margin: 2px 0 4px; padding-left: 20px; font-size: 13px; }
.wb-controls .wb-impossible { list-style: none; padding-left: 0; }
.wb-fold > .widget-html { cursor: pointer; }
.wb-fold:not(:has(> .widget-html:first-child details[open])) > :not(:first-child) {
  display: none !important; }
.wb-panel summary { cursor: pointer; padding: 3px 0; }
.wb-panel :focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2);
  outline-offset: 1px; }
.wb-controls .widget-inline-hbox { flex-direction: column; align-items: stretch; height: auto;
  width: auto; margin: 0; }
.wb-controls .widget-label { width: auto; max-width: none; text-align: left; font-weight: 600;
  height: auto; overflow: visible; white-space: nowrap; }
.wb-controls .widget-dropdown > select, .wb-controls .widget-text input { flex: none; width: 100%;
  height: 32px; font-size: 14px; margin: 0; }
.wb-hint { opacity: 0.8; font-size: 13px; }
.wb-problem { color: var(--jp-ui-font-color1, #222); font-weight: 600; padding: 4px 8px;
  border-left: 4px solid #D55E00; background: rgba(213, 94, 0, 0.12); }
.wb-field:has(.wb-problem) { grid-column: 1 / -1; flex-direction: row; align-items: flex-end;
  gap: 12px; }
.wb-field:has(.wb-problem) > .widget-inline-hbox { flex: 0 0 220px; }
.wb-field:has(.wb-problem) > .widget-html { flex: 1 1 auto; }
.wb-field:has(.wb-problem) select, .wb-field:has(.wb-problem) input { border-color: #D55E00; }
.wb-buttons { flex-flow: row wrap; align-items: center; gap: 8px; margin-top: 8px; }
.wb-buttons .jupyter-button, .wb-trouble .jupyter-button { height: 36px; width: auto;
  min-width: 84px; padding: 0 12px; font-size: 15px; margin: 0; }
.wb-trouble .jupyter-button { align-self: flex-start; margin-top: 6px; }
.wb-predict { flex-flow: row wrap; align-items: center; gap: 4px 8px; margin-top: 8px; }
.wb-predict .widget-inline-hbox { width: auto; margin: 0; }
.wb-predict .widget-label { width: auto; max-width: none; }
.wb-predict input[type=number] { width: 80px; flex: none; }
.wb-predict .widget-text { flex: 0 1 260px; }
.wb-predict .jupyter-button { width: auto; margin: 0; }
.wb-predict .widget-html { flex: 1 1 300px; }
.wb-language .jupyter-button { width: auto; min-width: 48px; }
.wb-buttons .widget-hprogress { flex: 1 1 140px; width: auto; height: 20px; margin: 0; }
.wb-buttons .wb-message { flex: 3 1 380px; font-variant-numeric: tabular-nums; }
.wb-step { flex-flow: row wrap; gap: 4px 16px; }
.wb-step .widget-inline-hbox { width: auto; margin: 0; }
.wb-step .widget-label { width: auto; max-width: none; }
.wb-keep-row { flex-flow: row wrap; align-items: center; gap: 4px 8px; }
.wb-keep-row .jupyter-button { width: auto; margin: 0; }
.wb-keep-row .widget-text { flex: 0 1 420px; width: auto; }
.wb-limits { gap: 4px; margin-bottom: 8px; }
.wb-limits .jupyter-button { width: auto; }
.wb-limits .widget-inline-hbox { width: auto; margin: 0; }
.wb-limits .widget-label { width: auto; max-width: none; }
.wb-details .widget-text { width: auto; }
.wb-details .widget-label { width: auto; max-width: none; }
.wb-badge { display: inline-block; font-weight: 600; padding: 3px 12px; margin: 6px 0 2px;
  border: 2px solid #8C8C8C; border-radius: 6px; font-size: 15px; }
.wb-badge-yes { border-color: #009E73; } .wb-badge-no { border-color: #D55E00; }
.wb-panel p { margin: 2px 0; font-size: 15px; }
.wb-charts { display: grid; gap: 8px 16px; margin-top: 8px;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }
.wb-chart { min-width: 0; }
.wb-panel .wb-unseen { height: 1px; margin: 0; overflow: hidden; visibility: hidden; }
.wb-chart-share, .wb-chart-timeline, .wb-chart-memory { grid-column: 1 / -1; }
.wb-chart > div { width: 100%; } .wb-about { gap: 0; }
.wb-panel h4 { font-size: 14px; font-weight: 600; margin: 8px 0 2px; }
/* Figures take their colours when they are painted; a change of size paints them again. */
body[data-jp-theme-light="false"] .wb-chart { padding-right: 1px; }
.wb-pictures { display: flex; gap: 12px; margin: 8px 0; }
.wb-pictures figure { margin: 0; flex: 1 1 0; min-width: 0; max-width: 420px; }
.wb-pictures img { width: 100%; display: block; image-rendering: auto; }
.wb-pictures figcaption { font-size: 15px; font-weight: 600; padding-top: 2px;
  font-variant-numeric: tabular-nums; }
.wb-plan { margin-top: 10px; } .wb-plan svg { color: var(--jp-ui-font-color1, #222); }
.wb-panel pre { font-size: 13px;
  user-select: all; padding: 8px; overflow-x: auto; margin: 4px 0;
  background: var(--jp-layout-color2, #8882); color: inherit; }
@container (max-width: 400px) {
  .wb-panel .wb-fields, .wb-panel .wb-cut, .wb-panel .wb-axes {
    grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .wb-predict .widget-inline-hbox { max-width: 100%; height: auto; flex-flow: row wrap; }
  .wb-predict .widget-label { max-width: 100%; height: auto; white-space: normal; }
}
@container (max-width: 720px) {
  .wb-fields, .wb-cut { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .wb-axes { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .wb-workload, .wb-strategy { grid-column: 1 / -1; }
  .wb-field:has(.wb-problem) { flex-flow: row wrap; }
  .wb-charts { grid-template-columns: minmax(0, 1fr); }
}
"""
    + table.STYLE
)
