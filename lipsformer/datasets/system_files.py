"""Files and folders that systems and tools leave next to photos: thumbnails, sidecars, bins, checkpoints."""

from __future__ import annotations

__all__ = ["PREFIXES", "is_system_file"]

# In lower case. Synology, QNAP, Windows, macOS, Linux desktops, ext4, Jupyter, Picasa, Android, Lightroom, Dropbox.
NAMES = frozenset(
    {
        "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot", ".@__thumb", "@recycle", "@recently-snapshot",
        ".@upload_cache", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
        "system volume information", "__macosx", ".ds_store", ".appledouble", ".appledb", ".appledesktop",
        "network trash folder", "temporary items", ".spotlight-v100", ".fseventsd", ".trashes", ".temporaryitems",
        ".documentrevisions-v100", ".localized", "icon\r", ".thumbnails", ".thumb", ".sh_thumbnails", ".directory",
        ".trash", "lost+found", ".snapshot", ".snapshots", ".zfs", ".ipynb_checkpoints", "__pycache__", "picasa.ini",
        ".picasa.ini", ".picasaoriginals", ".nomedia", ".dropbox", ".dropbox.cache", ".stfolder", ".stversions",
        ".dtrash",
    }
)  # fmt: skip
PREFIXES = ("._", ".nfs", ".fuse_hidden", ".smbdelete", ".trash-", "synophoto_thumb", "synofile_thumb")
SUFFIXES = ("@synoeastream", "@synoresource", ":zone.identifier")


def is_system_file(name: str) -> bool:
    """Whether a file or folder of this name comes from a system or a tool, whatever its extension."""
    lower = name.lower()
    return lower in NAMES or lower.startswith(PREFIXES) or lower.endswith(SUFFIXES)
