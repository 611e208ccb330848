"""The pages people look at: Panel components that the notebooks in ``notebooks/apps`` put together."""
