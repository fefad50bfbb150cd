"""The control API's way into the dashboard: `/control/v1/dashboard/link`."""

from __future__ import annotations

from fastapi import APIRouter

from bockd.dashboardcontrol import DashboardControl, DashboardLink


def dashboard_control_router(dashboard: DashboardControl) -> APIRouter:
    """Build the router."""
    router = APIRouter(prefix="/dashboard", tags=["dashboard"])

    @router.post("/link", status_code=201)
    async def make_link() -> DashboardLink:
        """Make a link to the dashboard that works once, and soon."""
        return await dashboard.make_link()

    return router
