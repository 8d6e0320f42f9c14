"""The daemon: one asyncio process that joins trainer, links, store and admin service; it never imports torch."""
