// The one page: at the address of a link it exchanges that for a session, elsewhere it is the dashboard.

if (location.pathname === "/enter") import("./enter.js");
else import("./app.js");
