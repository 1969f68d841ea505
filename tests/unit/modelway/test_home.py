"""The directories of a home."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from modelway.home import prepare_home, prepare_socket_dir
from modelway.settings import Settings
from registry.errors import UsageError


class ElsewhereSettings(Settings):
    """Settings whose socket directory is where the test wants it, as if the home were too long."""

    where: Path

    @property
    def socket_dir(self) -> Path:
        return self.where


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_directories_are_made_and_private(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "deep" / "home")
    prepare_home(settings)
    prepare_home(settings)
    made = [settings.home, *settings.home.iterdir()]
    assert {settings.artifacts, settings.archives, settings.nodes_dir, settings.gateway_dir, settings.logs, settings.run_dir} <= set(made)
    assert {directory: mode(directory) for directory in made} == dict.fromkeys(made, 0o700)
    assert mode(settings.socket_dir) == 0o700


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot create the home .*file/home: [^)]+\)\. Make it writable, or set MODELWAY_HOME"):
        prepare_home(Settings(home=tmp_path / "file" / "home"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot write in the home"):
        prepare_home(Settings(home=tmp_path / "home"))


def test_an_open_socket_directory_is_closed(tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir()
    (tmp_path / "sockets").chmod(0o777)
    prepare_socket_dir(ElsewhereSettings(where=tmp_path / "sockets"))
    assert mode(tmp_path / "sockets") == 0o700


def test_a_link_in_place_of_the_socket_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "sockets").symlink_to(tmp_path / "target")
    with pytest.raises(UsageError, match="not a directory of this user"):
        prepare_socket_dir(ElsewhereSettings(where=tmp_path / "sockets"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_socket_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir(mode=0o700)
    os.chown(tmp_path / "sockets", 12345, 12345)
    with pytest.raises(UsageError, match=r"not a directory of this user .*owner uid 12345.*shorter path"):
        prepare_socket_dir(ElsewhereSettings(where=tmp_path / "sockets"))
