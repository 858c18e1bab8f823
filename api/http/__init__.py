"""HTTP concerns of every route: keys, CSRF, CORS, limits, problems, paging."""
