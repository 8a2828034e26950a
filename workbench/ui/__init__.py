"""What people see: the panel in a notebook, its figures, the HTML report, and JupyterLab itself."""
