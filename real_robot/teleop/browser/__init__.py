"""A web page as a teleoperation device: gizmo, phone, WebXR controllers."""
