/* Runs the cell of the panel when `workbench lab` opens the start notebook.

   JupyterLab has no setting for that. This file is written by hand in the form that its builder
   gives to prebuilt extensions, and uses nothing but the application it is handed: no build step. */
(() => {
  const START = "00-start-here.ipynb";
  const STARTS = [START, `zh/${START}`]; // one for each language
  // The cell as we ship it, presets aside. What else a notebook holds is run by people only.
  const OURS = /^import workbench as wb\s+wb\.app\([^()]*\)\s*$/;
  // Not when the page is loaded again: a second panel would close the one that may be at work.
  const FRESH = "'workbench' not in __import__('sys').modules";

  const isFresh = async (kernel) => {
    const request = { code: "", silent: true, user_expressions: { fresh: FRESH } };
    const reply = await kernel.requestExecute(request).done;
    return reply.content.user_expressions?.fresh?.data?.["text/plain"] === "True";
  };

  const plugin = {
    id: "dask-workbench:open-panel",
    description: "Runs the cell of the panel in the start notebook, once.",
    autoStart: true,
    activate: (app) => {
      let settled = false; // at most one try per page
      const consider = async () => {
        const panel = app.shell.currentWidget;
        if (settled || !STARTS.includes(panel?.context?.path) || !panel.sessionContext) return;
        settled = true;
        await panel.context.ready;
        await panel.sessionContext.ready;
        const kernel = panel.sessionContext.session?.kernel;
        const cells = panel.content.widgets;
        const index = cells.findIndex((cell) => cell.model.type === "code");
        const ours = () => OURS.test(cells[index]?.model.sharedModel.getSource() ?? "");
        if (!kernel || !ours() || !(await isFresh(kernel))) return;
        // The command takes the cell that is active, which people may have changed meanwhile.
        if (app.shell.currentWidget !== panel || !ours()) return;
        panel.content.activeCellIndex = index;
        await app.commands.execute("notebook:run-cell");
        // A page that is loaded again then finds the panel in the notebook, as it is now.
        if (panel.context.canSave) await panel.context.save();
      };
      const watch = () => consider().catch((error) => console.warn("No panel by itself:", error));
      app.shell.currentChanged?.connect(watch);
      void app.restored.then(watch);
    },
  };

  window._JUPYTERLAB ??= {};
  window._JUPYTERLAB["dask-workbench"] = {
    init: () => {}, // no module is shared in either direction
    get: async () => () => ({ __esModule: true, default: plugin }),
  };
})();
