"""``@step``, ``@tool`` and ``@agent``: what a declaration is, where it is registered, and what calling it returns."""
