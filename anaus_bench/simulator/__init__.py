"""Generated ultrasound: anatomy, scatterers, point spread function, scan conversion."""
