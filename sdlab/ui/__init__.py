"""The page: settings to a form, a session to panels, and the server that carries both."""
